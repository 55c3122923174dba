package images

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/rpc"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// Remove drops a name, or by an id all names of an image, and with the last one what nothing else needs. As with docker, the last name of an
// image that containers were made from goes only with force, and not while one of them runs; so do names in several
// repositories that are removed by an id.
func (s *Service) Remove(ctx context.Context, ref string, force bool) (*imagesv1.RemoveResponse, error) {
	img, byID, err := s.lookUp(ref)
	if err != nil {
		return nil, err
	}
	gone, err := s.untag(ctx, img, byID, force)
	if err != nil {
		return nil, fmt.Errorf("remove image %s: %w", ref, err)
	}
	resp := &imagesv1.RemoveResponse{}
	for _, g := range gone.names {
		resp.Untagged = append(resp.Untagged, g.GetMeta().GetName())
	}
	if !gone.last || s.Collector == nil {
		return resp, nil
	}
	var only []gc.Ref
	for _, g := range gone.names {
		reach(g, func(r gc.Ref) { only = append(only, r) })
	}
	report, err := s.Collector.Collect(ctx, gc.Options{Only: only})
	if err != nil { // the name is gone; what could not be dropped is tried again by the next collection
		slog.WarnContext(ctx, "an image that was removed left something behind", "image", ref, "err", err)
	}
	for _, d := range report.Dropped {
		if d.Kind == kindBlob {
			resp.Deleted = append(resp.Deleted, d.Key)
		}
	}
	resp.ReclaimedBytes = report.Bytes
	return resp, nil
}

// untagged is what untag did.
type untagged struct {
	names []*imagesv1.Image
	last  bool // nothing names the image any more
}

// untag deletes the records. Looking who uses the image and claiming it is one transaction, and whoever makes a container from it
// claims it first: none can come in between.
func (s *Service) untag(ctx context.Context, img *imagesv1.Image, byID, force bool) (out untagged, err error) {
	id := img.GetMeta().GetId()
	var op *meta.Op
	if err := rpc.Retry(ctx, func(context.Context) error {
		return s.DB.Update(func(tx *meta.Tx) error {
			if out, err = plan(tx, img, byID, force); err != nil {
				return err
			}
			var claims []*storev1.Claim
			if out.last {
				if err := s.free(tx, id, force); err != nil {
					return err
				}
				claims = append(claims, imageClaim(id, meta.Drop))
			}
			op, err = tx.Begin("image.remove", claims...)
			return err
		})
	}); err != nil {
		return untagged{}, err
	}
	defer op.End(ctx, &err)
	fault.Point("images.remove.claimed")
	return out, op.Commit(func(tx *meta.Tx) error {
		for _, g := range out.names {
			now, err := images.Get(tx, g.GetMeta().GetName())
			if notFound(err) {
				continue
			}
			if err == nil && now.GetMeta().GetId() != id {
				continue // the name means something newer by now
			}
			if err := images.Delete(tx, g.GetMeta().GetName()); err != nil {
				return err
			}
		}
		return nil
	})
}

// plan decides which names go.
func plan(tx *meta.Tx, img *imagesv1.Image, byID, force bool) (untagged, error) {
	all := named(tx, img.GetMeta().GetId())
	if !byID {
		if !slices.ContainsFunc(all, func(i *imagesv1.Image) bool { return i.GetMeta().GetName() == img.GetMeta().GetName() }) {
			return untagged{}, missing(img.GetMeta().GetName())
		}
		return untagged{names: []*imagesv1.Image{img}, last: len(all) == 1}, nil
	}
	if len(all) == 0 {
		return untagged{}, missing(img.GetMeta().GetId())
	}
	var names []string
	repositories := map[string]bool{}
	for _, i := range all {
		names = append(names, i.GetMeta().GetName())
		repositories[repository(i.GetMeta().GetName())] = true
	}
	if len(repositories) > 1 && !force {
		return untagged{}, fmt.Errorf("it has names in several repositories (%s): remove them one by one, or all with --force: %w",
			strings.Join(names, ", "), errdefs.ErrFailedPrecondition)
	}
	return untagged{names: all, last: true}, nil
}

// free says whether the last name of an image may go.
func (s *Service) free(tx *meta.Tx, id string, force bool) error {
	if s.Users == nil {
		return nil
	}
	users := s.Users(tx, id)
	for _, u := range users {
		if u.Running {
			return fmt.Errorf("the running container %s is made from it: stop and remove that first: %w", u.Name, errdefs.ErrFailedPrecondition)
		}
	}
	if len(users) > 0 && !force {
		return fmt.Errorf("the container %s is made from it: remove that first, or the image with --force: %w", users[0].Name, errdefs.ErrFailedPrecondition)
	}
	return nil
}

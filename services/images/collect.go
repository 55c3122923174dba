package images

import (
	"context"
	"fmt"
	"iter"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

// Collect tells the collector about images and blobs: every name is a root; it leads to its blobs, and
// to the snapshots its layers were unpacked to.
func (s *Service) Collect(c *gc.Collector) {
	c.Root(func(tx *meta.Tx, mark func(gc.Ref)) error {
		found, err := all(tx)
		for _, i := range found {
			reach(i, mark)
		}
		return err
	})
	c.Edges(kindImage, func(tx *meta.Tx, r gc.Ref, mark func(gc.Ref)) error {
		for _, i := range named(tx, r.Key) {
			reach(i, mark)
		}
		return tx.Damaged()
	})
	c.Edges(kindBlob, func(tx *meta.Tx, r gc.Ref, mark func(gc.Ref)) error {
		b, err := blobs.Get(tx, r.Key)
		if notFound(err) {
			return nil
		}
		for _, d := range b.GetRefs() {
			mark(gc.Ref{Kind: kindBlob, Key: d})
		}
		return err
	})
	c.Sweeper(kindBlob, sweeper{s})
}

// sweeper is the collector's way to blobs.
type sweeper struct{ s *Service }

// Things ranges over the blobs on disk, and over the records of blobs that are not.
func (w sweeper) Things(context.Context) iter.Seq2[gc.Thing, error] {
	return func(yield func(gc.Thing, error) bool) {
		records := map[string]*storev1.Blob{}
		if err := w.s.DB.View(func(tx *meta.Tx) error {
			for d, b := range blobs.All(tx) {
				records[d] = b
			}
			return tx.Damaged()
		}); err != nil {
			yield(gc.Thing{}, err)
			return
		}
		for info, err := range w.s.Blobs.All() {
			if err != nil {
				yield(gc.Thing{}, err)
				return
			}
			d := info.Digest.String()
			t := gc.Thing{Ref: gc.Ref{Kind: kindBlob, Key: d}, Since: info.ModTime, Bytes: info.Size}
			for _, to := range records[d].GetRefs() {
				t.Refs = append(t.Refs, gc.Ref{Kind: kindBlob, Key: to})
			}
			delete(records, d)
			if !yield(t, nil) {
				return
			}
		}
		for d := range records {
			if !yield(gc.Thing{Ref: gc.Ref{Kind: kindBlob, Key: d}}, nil) {
				return
			}
		}
	}
}

// Drop removes a blob that nothing needs.
func (w sweeper) Drop(_ context.Context, op *meta.Op, r gc.Ref) error {
	fault.Point("images.blob.claimed")
	if err := w.s.Blobs.Remove(digest.Digest(r.Key)); err != nil {
		return err
	}
	op.Then(func(tx *meta.Tx) error { return blobs.Delete(tx, r.Key) })
	return nil
}

// undoBlob takes a claim on a blob back: a DROP is finished. Blobs are never MADE: content by its digest is only used.
func (s *Service) undoBlob(_ context.Context, c *storev1.Claim) error {
	if c.GetMode() != meta.Drop {
		return nil
	}
	d := c.GetRef().GetKey()
	if err := s.Blobs.Remove(digest.Digest(d)); err != nil {
		return err
	}
	return s.DB.Update(func(tx *meta.Tx) error { return blobs.Delete(tx, d) })
}

// Checks compares images with the blobs and snapshots they need, and records of blobs with the disk. A blob that no
// record tells of is no difference: it came with a pull that did not finish, and the next pull uses it, or the collector takes it.
func (s *Service) Checks() []check.Check {
	return []check.Check{{Name: "images.content", Run: s.checkImages}, {Name: "images.blobs", Run: s.checkBlobs}}
}

func (s *Service) checkImages(ctx context.Context, report check.Report) error {
	var found []*imagesv1.Image
	recorded := map[string]bool{}
	if err := s.DB.View(func(tx *meta.Tx) (err error) {
		for d := range blobs.All(tx) {
			recorded[d] = true
		}
		found, err = all(tx)
		return err
	}); err != nil {
		return err
	}
	for _, i := range found {
		subject := "image " + i.GetMeta().GetName()
		for _, d := range digests(i) {
			if _, err := s.Blobs.Stat(digest.Digest(d)); errdefs.IsNotFound(err) {
				report(subject, fmt.Sprintf("its blob %s is missing: pull it again", d), nil)
			} else if err != nil {
				return err
			} else if !recorded[d] {
				report(subject, fmt.Sprintf("its blob %s has no record", d), s.rerecord(i))
			}
		}
		if i.GetChainId() == "" {
			continue
		}
		for _, driver := range i.GetUnpacked() {
			if _, err := s.Snapshots.Get(ctx, driver, i.GetChainId()); errdefs.IsNotFound(err) {
				report(subject, fmt.Sprintf("snapshotter %s should hold it unpacked, and there is no record of its snapshot %s", driver, i.GetChainId()), s.forget(i, driver))
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// rerecord writes an image's blobs down again.
func (s *Service) rerecord(i *imagesv1.Image) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := s.contentOf(ctx, i)
		if err != nil {
			return err
		}
		return s.DB.Update(func(tx *meta.Tx) error {
			if !images.Has(tx, i.GetMeta().GetName()) {
				return nil
			}
			return putBlobs(tx, c.blobs())
		})
	}
}

// forget takes a driver off the list of those that hold an image: the next container unpacks it again.
func (s *Service) forget(i *imagesv1.Image, driver string) func(context.Context) error {
	return func(ctx context.Context) error {
		if _, err := s.Snapshots.Get(ctx, driver, i.GetChainId()); !errdefs.IsNotFound(err) {
			return err
		}
		return s.DB.Update(func(tx *meta.Tx) error {
			for _, now := range named(tx, i.GetMeta().GetId()) {
				var left []string
				for _, u := range now.GetUnpacked() {
					if u != driver {
						left = append(left, u)
					}
				}
				now.Unpacked = left
				if err := images.Put(tx, now.GetMeta().GetName(), now); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func (s *Service) checkBlobs(_ context.Context, report check.Report) error {
	records := map[string]*storev1.Blob{}
	if err := s.DB.View(func(tx *meta.Tx) error {
		for d, b := range blobs.All(tx) {
			records[d] = b
		}
		return tx.Damaged()
	}); err != nil {
		return err
	}
	for d, b := range records {
		info, err := s.Blobs.Stat(digest.Digest(d))
		switch {
		case errdefs.IsNotFound(err):
			report("blob "+d, "the store has a record of it and it is not on disk", s.unrecord(d))
		case err != nil:
			return err
		case info.Size != b.GetSize():
			report("blob "+d, fmt.Sprintf("it has %d bytes on disk, and should have %d", info.Size, b.GetSize()), nil)
		}
	}
	strays, err := s.Blobs.Strays()
	for _, path := range strays {
		report("file "+path, "it is among the blobs, and none: take it away", nil)
	}
	return err
}

// unrecord drops the record of a blob that is not on disk.
func (s *Service) unrecord(d string) func(context.Context) error {
	return func(context.Context) error {
		op, err := s.DB.Begin("image.check", blobClaim(d, meta.Drop))
		if err != nil {
			return err
		}
		return op.Commit(func(tx *meta.Tx) error {
			if _, err := s.Blobs.Stat(digest.Digest(d)); err == nil {
				return nil // it has come back
			}
			return blobs.Delete(tx, d)
		})
	}
}

// Usage sums the blobs, the compressed content that images were pulled as. What they take unpacked is the snapshots' to say.
func (s *Service) Usage(ctx context.Context) ([]*systemv1.Usage, error) {
	found, err := s.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	u := &systemv1.Usage{Kind: "images"}
	used, seen := map[string]bool{}, map[string]bool{}
	err = s.DB.View(func(tx *meta.Tx) error {
		for _, i := range found {
			id := i.GetMeta().GetId()
			if seen[id] {
				continue
			}
			seen[id] = true
			u.Total++
			if s.Users == nil || len(s.Users(tx, id)) == 0 {
				continue
			}
			u.Active++
			for _, d := range digests(i) {
				used[d] = true
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for info, err := range s.Blobs.All() {
		if err != nil {
			return nil, err
		}
		u.Bytes += info.Size
		if !used[info.Digest.String()] {
			u.ReclaimableBytes += info.Size
		}
	}
	return []*systemv1.Usage{u}, nil
}

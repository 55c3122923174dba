package images

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/internal/filter"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/registry"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/images/hello"
)

// Get finds an image by name, by id or the beginning of one, or by digest.
func (s *Service) Get(ctx context.Context, ref string) (*imagesv1.Image, error) {
	img, _, err := s.lookUp(ref)
	if notFound(err) && isHello(ref) {
		return s.hello(ctx, "", nil)
	}
	return img, err
}

// For refuses an image that a platform does not run; "" is every platform.
func (s *Service) For(img *imagesv1.Image, wanted string) error {
	if wanted == "" {
		return nil
	}
	want, err := parsePlatform(wanted, s.platform)
	if err != nil {
		return err
	}
	if have, err := parsePlatform(img.GetPlatform(), s.platform); err != nil || want.rank(have) < 0 {
		return fmt.Errorf("image %s: it is here for %s, not for %s: %w", img.GetMeta().GetName(), img.GetPlatform(), want, errdefs.ErrNotFound)
	}
	return nil
}

// References are all names of an image: those with a tag, and repository@digest of every repository that
// it was pulled from.
func (s *Service) References(id string) (tags, digests []string, err error) {
	err = s.DB.View(func(tx *meta.Tx) error {
		for _, i := range named(tx, id) {
			name := i.GetMeta().GetName()
			if tagged(name) {
				tags = append(tags, name)
			}
			if d := repository(name) + "@" + i.GetTarget().GetDigest(); !i.GetLocal() && !slices.Contains(digests, d) {
				digests = append(digests, d)
			}
		}
		return nil
	})
	return tags, digests, err
}

// lookUp is Get of what is here. byID says that ref is not a name.
func (s *Service) lookUp(ref string) (img *imagesv1.Image, byID bool, err error) {
	err = s.DB.View(func(tx *meta.Tx) error {
		img, byID, err = find(tx, ref)
		return err
	})
	return img, byID, err
}

// find is what a user means by ref: a full id, else a name, else the beginning of an id. Of an image with several names it
// returns one with a tag.
func find(tx *meta.Tx, ref string) (img *imagesv1.Image, byID bool, err error) {
	if d, ok := fullDigest(ref); ok {
		img, err = byDigest(tx, func(i *imagesv1.Image) bool { return means(i, d) }, ref)
		return img, true, err
	}
	named, perr := registry.Parse(ref)
	if perr == nil {
		if img, err = images.Get(tx, named.String()); !errdefs.IsNotFound(err) {
			return img, false, err
		}
		if d, ok := named.(reference.Digested); ok {
			img, err = byDigest(tx, func(i *imagesv1.Image) bool {
				return repository(i.GetMeta().GetName()) == named.Name() && means(i, d.Digest().String())
			}, ref)
			return img, false, err
		}
	}
	short := strings.TrimPrefix(ref, "sha256:")
	if len(short) >= 4 && strings.Trim(short, "0123456789abcdef") == "" {
		img, err = byDigest(tx, func(i *imagesv1.Image) bool {
			return strings.HasPrefix(strings.TrimPrefix(i.GetMeta().GetId(), "sha256:"), short)
		}, ref)
		if !errdefs.IsNotFound(err) {
			return img, true, err
		}
	}
	if perr != nil {
		return nil, false, perr
	}
	return nil, false, missing(named.String())
}

func missing(name string) error {
	return fmt.Errorf("image %s: there is none of that name here: %w", name, errdefs.ErrNotFound)
}

// fullDigest reads sha256:<hex> or <hex>, whole.
func fullDigest(ref string) (string, bool) {
	if len(ref) == 64 && strings.Trim(ref, "0123456789abcdef") == "" {
		return "sha256:" + ref, true
	}
	return ref, digest.Digest(ref).Validate() == nil
}

// means says whether a digest is one that people know the image by.
func means(i *imagesv1.Image, d string) bool {
	return d == i.GetMeta().GetId() || d == i.GetTarget().GetDigest() || d == i.GetManifest().GetDigest()
}

// byDigest finds the one image that matches, under the best of its names.
func byDigest(tx *meta.Tx, match func(*imagesv1.Image) bool, ref string) (*imagesv1.Image, error) {
	var best *imagesv1.Image
	for _, i := range images.All(tx) {
		switch {
		case !match(i):
		case best == nil:
			best = i
		case best.GetMeta().GetId() != i.GetMeta().GetId():
			return nil, fmt.Errorf("image %s: several ids begin so, write more of it: %w", ref, errdefs.ErrInvalidArgument)
		case !tagged(best.GetMeta().GetName()) && tagged(i.GetMeta().GetName()):
			best = i
		}
	}
	if best == nil {
		return nil, missing(ref)
	}
	return best, nil
}

// named lists the images of one id, in the order of their names.
func named(tx *meta.Tx, id string) (out []*imagesv1.Image) {
	for _, i := range images.All(tx) {
		if i.GetMeta().GetId() == id {
			out = append(out, i)
		}
	}
	return out
}

// listed is an image in a list, and whether no tag leads to it.
type listed struct {
	*imagesv1.Image
	dangling bool
}

// keys are what images are filtered by.
var keys = filter.Keys[listed]{
	"reference": {Test: func(pattern string) (func(listed) bool, error) {
		if _, err := reference.FamiliarMatch(pattern, reference.TrimNamed(mustName(hello.Name))); err != nil {
			return nil, err
		}
		return func(i listed) bool { return matches(pattern, i.GetMeta().GetName()) }, nil
	}},
	"label":    filter.Label(func(i listed) map[string]string { return i.GetConfig().GetLabels() }),
	"dangling": filter.Bool(func(i listed) bool { return i.dangling }),
}

// List returns the images that match, in the order of their names. Filters: reference=<name, tag or pattern>, label=<key>[=<value>],
// dangling=true|false. One that cannot be read is left out and makes an error of what follows the list.
func (s *Service) List(_ context.Context, filters []*typesv1.Filter) (out []*imagesv1.Image, err error) {
	match, err := filter.New("images", keys, filters)
	if err != nil {
		return nil, err
	}
	err = s.DB.View(func(tx *meta.Tx) error {
		found, err := all(tx)
		tags := map[string]bool{}
		for _, i := range found {
			tags[i.GetMeta().GetId()] = tags[i.GetMeta().GetId()] || tagged(i.GetMeta().GetName())
		}
		for _, i := range found {
			if match(listed{i, !tags[i.GetMeta().GetId()]}) {
				out = append(out, i)
			}
		}
		return err
	})
	return out, err
}

// mustName parses a full reference that we wrote.
func mustName(name string) reference.Named {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		panic(err)
	}
	return n
}

// matches says whether a pattern, as docker has them, means a name: with or without the defaults that are not written, with or without the tag.
func matches(pattern, name string) bool {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	for _, r := range []reference.Reference{n, reference.TrimNamed(n)} {
		if ok, err := reference.FamiliarMatch(pattern, r); err == nil && ok {
			return true
		}
	}
	if p, err := registry.Parse(pattern); err == nil && !reference.IsNameOnly(mustName(p.String())) {
		return p.String() == n.String() && pattern != reference.FamiliarName(p)
	}
	return false
}

// Tag gives an image another name. If the name meant another image, that one is kept under its digest.
func (s *Service) Tag(ctx context.Context, ref, name string) (*imagesv1.Image, error) {
	n, err := registry.Parse(name)
	if err != nil {
		return nil, err
	}
	if _, ok := n.(reference.Digested); ok {
		return nil, fmt.Errorf("tag image %s: %q has a digest, which nobody can choose: %w", ref, name, errdefs.ErrInvalidArgument)
	}
	if _, err := s.Get(ctx, ref); err != nil { // puts hello in place
		return nil, err
	}
	var out *imagesv1.Image
	err = s.DB.Update(func(tx *meta.Tx) error {
		img, _, err := find(tx, ref)
		if err != nil {
			return err
		}
		img.Local = localName(tx, n.String(), img.GetMeta().GetId())
		img.Meta.Name = n.String()
		out = img
		return put(tx, img)
	})
	return out, err
}

// Resolve finds what to run and unpacks it for a driver ("" is the default one) that does not have it yet.
func (s *Service) Resolve(ctx context.Context, ref, snapshotter string) (*imagesv1.Image, error) {
	if snapshotter == "" {
		snapshotter = s.o.Snapshotter
	}
	img, _, err := s.lookUp(ref)
	if notFound(err) && isHello(ref) {
		return s.hello(ctx, snapshotter, nil)
	}
	if err != nil {
		return nil, err
	}
	if slices.Contains(img.GetUnpacked(), snapshotter) {
		return img, nil
	}
	return s.unpackFor(ctx, img, snapshotter)
}

// isHello says whether ref is the name of the image that is in the daemon.
func isHello(ref string) bool {
	n, err := registry.Parse(ref)
	return err == nil && n.String() == hello.Name
}

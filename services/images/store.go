package images

import (
	"errors"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// images by full reference.
var images = meta.NewTable("images", func() *imagesv1.Image { return &imagesv1.Image{} },
	func(i *imagesv1.Image) map[string]string { return map[string]string{"image": i.GetMeta().GetId()} })

// blobs by digest.
var blobs = meta.NewTable("blobs", func() *storev1.Blob { return &storev1.Blob{} })

// all ranges over the images into a slice, in the order of their names.
func all(tx *meta.Tx) (out []*imagesv1.Image, err error) {
	for _, i := range images.All(tx) {
		out = append(out, i)
	}
	return out, tx.Damaged()
}

// localName says whether no registry said that name means the image of id.
func localName(tx *meta.Tx, name, id string) bool {
	had, err := images.Get(tx, name)
	return err != nil || had.GetMeta().GetId() != id || had.GetLocal()
}

// put writes an image under its name and, where the name meant something else that nothing else names, keeps that under its digest.
func put(tx *meta.Tx, i *imagesv1.Image) error {
	name := i.GetMeta().GetName()
	old, err := images.Get(tx, name)
	switch {
	case err == nil && old.GetMeta().GetId() == i.GetMeta().GetId():
		i.Unpacked = union(old.GetUnpacked(), i.GetUnpacked())
	case err == nil:
		if err := dangle(tx, old); err != nil {
			return err
		}
	case errdefs.IsDataLoss(err): // cannot be read: this is how it is mended
	case !errdefs.IsNotFound(err):
		return err
	}
	others, err := all(tx)
	if err != nil && !errdefs.IsDataLoss(err) {
		return err
	}
	for _, o := range others { // they all are unpacked where one is
		if o.GetMeta().GetId() == i.GetMeta().GetId() {
			i.Unpacked = union(i.GetUnpacked(), o.GetUnpacked())
		}
	}
	return images.Put(tx, name, i)
}

// dangle keeps an image whose name is being given away.
func dangle(tx *meta.Tx, old *imagesv1.Image) error {
	for name, o := range images.All(tx) {
		if o.GetMeta().GetId() == old.GetMeta().GetId() && name != old.GetMeta().GetName() {
			return nil
		}
	}
	kept := proto.CloneOf(old)
	kept.Meta.Name = repository(old.GetMeta().GetName()) + "@" + old.GetTarget().GetDigest()
	if kept.GetMeta().GetName() == old.GetMeta().GetName() {
		return nil
	}
	return images.Put(tx, kept.GetMeta().GetName(), kept)
}

// repository is a full reference without tag and digest.
func repository(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if colon := strings.LastIndex(name, ":"); colon > strings.LastIndex(name, "/") {
		name = name[:colon]
	}
	return name
}

// tagged says whether a full reference has a tag.
func tagged(name string) bool { return !strings.Contains(name, "@") }

func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

// putBlobs records blobs that are not recorded as they are.
func putBlobs(tx *meta.Tx, bs []*storev1.Blob) error {
	for _, b := range bs {
		old, err := blobs.Get(tx, b.GetDigest())
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) {
			return err
		}
		if err == nil { // an index is read for one platform at a time, and may lead to several
			b.Refs = union(old.GetRefs(), b.GetRefs())
		}
		if err != nil || !proto.Equal(old, b) {
			if err := blobs.Put(tx, b.GetDigest(), b); err != nil {
				return err
			}
		}
	}
	return nil
}

// reach calls mark for everything an image needs.
func reach(i *imagesv1.Image, mark func(gc.Ref)) {
	for _, d := range digests(i) {
		mark(gc.Ref{Kind: kindBlob, Key: d})
	}
	if i.GetChainId() == "" {
		return
	}
	for _, s := range i.GetUnpacked() {
		mark(gc.Ref{Kind: kindSnapshot, Scope: s, Key: i.GetChainId()})
	}
}

// kindSnapshot is services/snapshots's kind of ref: scope is the driver, key the snapshot.
const kindSnapshot = "snapshot"

// digests lists the blobs an image is made of, those that point before those that are pointed at.
func digests(i *imagesv1.Image) []string {
	out := []string{i.GetTarget().GetDigest()}
	if m := i.GetManifest().GetDigest(); m != out[0] {
		out = append(out, m)
	}
	out = append(out, i.GetConfigDescriptor().GetDigest())
	for _, l := range i.GetLayers() {
		if d := l.GetBlob().GetDigest(); !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// notFound says whether an error is only that.
func notFound(err error) bool { return errdefs.IsNotFound(err) && !errors.Is(err, errdefs.ErrDataLoss) }

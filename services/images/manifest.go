package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/registry"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// maxLayers is more than Docker makes (127), and three claims for each fit in one operation.
const maxLayers = 160

// configTypes are the media types of an image's configuration.
var configTypes = []string{ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json"}

// document is a small blob in memory.
type document struct {
	desc ocispec.Descriptor
	raw  []byte
}

// content is all there is to know of an image before its layers are fetched.
type content struct {
	target    ocispec.Descriptor // what the name means: an index or a manifest
	documents []document         // index, manifest, configuration
	manifest  ocispec.Descriptor
	config    ocispec.Descriptor
	image     ocispec.Image
	layers    []layer // bottom up
}

type layer struct {
	ocispec.Descriptor
	diffID, chainID digest.Digest
	createdBy       string
}

// reader fetches small blobs; kind is "manifest" or "config".
type reader func(ctx context.Context, kind string, desc ocispec.Descriptor) ([]byte, error)

// read follows target to an image for want. exact says that no other platform will do.
func read(ctx context.Context, get reader, target ocispec.Descriptor, want platform, exact bool) (*content, error) {
	c := &content{target: target}
	m, err := c.descend(ctx, get, want)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(configTypes, m.Config.MediaType) {
		return nil, fmt.Errorf("it is no image but an artifact of the kind %.100q: %w", m.Config.MediaType, errdefs.ErrInvalidArgument)
	}
	if err := sound("configuration", m.Config); err != nil {
		return nil, err
	}
	raw, err := get(ctx, "config", m.Config)
	if err != nil {
		return nil, err
	}
	c.config = m.Config
	c.documents = append(c.documents, document{m.Config, raw})
	if err := json.Unmarshal(raw, &c.image); err != nil {
		return nil, notWell("configuration", err)
	}
	if have := c.platform(); exact && want.rank(have) < 0 {
		return nil, fmt.Errorf("it is not there for %s, only for %s: %w", want, have, errdefs.ErrNotFound)
	}
	if c.image.OS != "" && c.image.OS != "linux" {
		return nil, fmt.Errorf("it is for %s, and this is linux: %w", c.image.OS, errdefs.ErrFailedPrecondition)
	}
	return c, c.stack(m.Layers)
}

// descend follows the target through indexes to the manifest for want, and keeps what it read.
func (c *content) descend(ctx context.Context, get reader, want platform) (m ocispec.Manifest, err error) {
	desc := c.target
	for depth := 0; ; depth++ {
		raw, err := get(ctx, "manifest", desc)
		if err != nil {
			return m, err
		}
		kind, err := registry.TypeOf(raw, desc.MediaType)
		if err != nil {
			return m, err
		}
		c.documents = append(c.documents, document{desc, raw})
		if kind == ocispec.MediaTypeImageManifest || kind == registry.DockerManifest {
			if err := json.Unmarshal(raw, &m); err != nil {
				return m, notWell("manifest", err)
			}
			c.manifest = desc
			return m, nil
		}
		if depth == 2 {
			return m, fmt.Errorf("its indexes are nested more than three deep: %w", errdefs.ErrInvalidArgument)
		}
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return m, notWell("index", err)
		}
		if desc, err = choose(index, want); err != nil {
			return m, err
		}
		if err := sound("manifest", desc); err != nil {
			return m, err
		}
	}
}

func notWell(what string, err error) error {
	return fmt.Errorf("its %s is not well formed: %w: %w", what, err, errdefs.ErrInvalidArgument)
}

// sound keeps what a stranger's document says from being used unseen.
func sound(what string, d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("its %s has the digest %.80q: %w: %w", what, string(d.Digest), err, errdefs.ErrInvalidArgument)
	}
	if a := d.Digest.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return fmt.Errorf("its %s has a digest by %s, only sha256 and sha512 are known: %w", what, a, errdefs.ErrNotImplemented)
	}
	if d.Size < 0 {
		return fmt.Errorf("its %s has a size of %d bytes: %w", what, d.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// stack matches layers with the configuration's digests and gives each its chain id
// (https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md#layer-chainid).
func (c *content) stack(layers []ocispec.Descriptor) error {
	ids := c.image.RootFS.DiffIDs
	if len(ids) != len(layers) {
		return fmt.Errorf("its configuration tells of %d layers, its manifest of %d: %w", len(ids), len(layers), errdefs.ErrInvalidArgument)
	}
	if len(layers) > maxLayers {
		return fmt.Errorf("it has %d layers, at most %d are allowed: %w", len(layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	var history []string
	for _, h := range c.image.History {
		if !h.EmptyLayer {
			history = append(history, h.CreatedBy)
		}
	}
	chain := digest.Digest("")
	for i, d := range layers {
		what := fmt.Sprintf("layer %d", i+1)
		if err := errors.Join(sound(what, d), sound(what, ocispec.Descriptor{Digest: ids[i]})); err != nil {
			return err
		}
		if strings.Contains(d.MediaType, "encrypted") {
			return fmt.Errorf("its layer %s is encrypted: %w", d.Digest, errdefs.ErrNotImplemented)
		}
		if chain = ids[i]; i > 0 {
			chain = digest.FromString(c.layers[i-1].chainID.String() + " " + ids[i].String())
		}
		l := layer{Descriptor: d, diffID: ids[i], chainID: chain}
		if i < len(history) {
			l.createdBy = history[i]
		}
		c.layers = append(c.layers, l)
	}
	return nil
}

func (c *content) platform() platform {
	return platform{c.image.OS, c.image.Architecture, c.image.Variant}.normal()
}

// chainID is the snapshot that all layers unpack to; "" without layers.
func (c *content) chainID() string {
	if len(c.layers) == 0 {
		return ""
	}
	return c.layers[len(c.layers)-1].chainID.String()
}

// blobs are the records of all that the image is made of.
func (c *content) blobs() []*storev1.Blob {
	var out []*storev1.Blob
	for i, d := range c.documents {
		b := &storev1.Blob{Digest: d.desc.Digest.String(), Size: d.desc.Size, MediaType: d.desc.MediaType}
		if i+1 < len(c.documents) {
			b.Refs = append(b.Refs, c.documents[i+1].desc.Digest.String())
		}
		if d.desc.Digest == c.manifest.Digest {
			for _, l := range c.layers {
				b.Refs = append(b.Refs, l.Digest.String())
			}
		}
		out = append(out, b)
	}
	for _, l := range c.layers {
		out = append(out, &storev1.Blob{Digest: l.Digest.String(), Size: l.Size, MediaType: l.MediaType})
	}
	return out
}

func descriptor(d ocispec.Descriptor) *typesv1.Descriptor {
	return &typesv1.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size}
}

// record is the image as it is stored and shown. bytes are the layers' sizes, unpacked.
func (c *content) record(name string, bytes []int64) *imagesv1.Image {
	img := &imagesv1.Image{
		Meta:             &typesv1.Meta{Id: c.config.Digest.String(), Name: name, CreatedAt: timestamppb.Now()},
		Target:           descriptor(c.target),
		Platform:         c.platform().String(),
		ChainId:          c.chainID(),
		Config:           c.settings(),
		Manifest:         descriptor(c.manifest),
		ConfigDescriptor: descriptor(c.config),
	}
	for i, l := range c.layers {
		img.Layers = append(img.Layers, &imagesv1.Layer{
			Blob: descriptor(l.Descriptor), DiffId: l.diffID.String(), ChainId: l.chainID.String(), Bytes: bytes[i], CreatedBy: l.createdBy,
		})
		img.Bytes += bytes[i]
	}
	return img
}

// settings is what containers inherit.
func (c *content) settings() *imagesv1.Config {
	in := c.image.Config
	out := &imagesv1.Config{
		User: in.User, Env: in.Env, Entrypoint: in.Entrypoint, Cmd: in.Cmd, Workdir: in.WorkingDir, StopSignal: in.StopSignal,
		ExposedPorts: slices.Sorted(maps.Keys(in.ExposedPorts)), Volumes: slices.Sorted(maps.Keys(in.Volumes)),
		Labels: in.Labels, Author: c.image.Author,
	}
	if c.image.Created != nil {
		out.CreatedAt = timestamppb.New(*c.image.Created)
	}
	return out
}

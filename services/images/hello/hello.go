// Package hello makes the image that is in the daemon itself: one program of a few hundred bytes that says what just happened.
//
// The program is assembled here, byte by byte, for the architecture asked for, so that no binary has to be kept, and
// nothing but the Go compiler is needed to make it.
package hello

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Name is the full reference the image goes by. A user says "hello".
const Name = "docker.io/library/hello:latest"

// Greeting is what the program prints.
const Greeting = `
Hello from a container.

You see this because everything works. What just happened:

  1. gantry asked the daemon, gantryd, for a container of the image "hello".
     That image is part of the daemon: nothing had to be downloaded.
  2. gantryd unpacked its one layer, and a storage driver made a root
     filesystem of it that this container may write to.
  3. gantryd started a shim. The shim made namespaces and limits, took away
     every privilege that is not needed, and executed the program "/hello".
  4. The program wrote these lines. The shim logged them and passed them on.

What to try next:

  gantry run -it --rm debian bash       a shell in another system
  gantry run -d -p 8080:80 nginx        a server, at http://localhost:8080
  gantry ps -a                          what runs, and what has run
  gantry --help                         everything else

`

// path is where the program is in the image.
const path = "hello"

// made is when the image was made, as far as anybody is told: the same bytes every time.
var made = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Image is the parts of the image, in the order they point at each other, last first.
type Image struct {
	Manifest, Config, Layer ocispec.Descriptor
	Content                 map[digest.Digest][]byte
}

// New makes the image for an architecture, by Go's name. NotImplemented: nobody has written the program for it.
func New(arch string) (Image, error) {
	program, err := assemble(arch, Greeting)
	if err != nil {
		return Image{}, err
	}
	layer, err := archive(program)
	if err != nil {
		return Image{}, fmt.Errorf("make image hello: %w", err)
	}
	img := Image{Content: map[digest.Digest][]byte{}}
	img.Layer = img.add(ocispec.MediaTypeImageLayer, layer)
	config := ocispec.Image{
		Created:  &made,
		Author:   "gantry",
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config: ocispec.ImageConfig{
			Cmd: []string{"/" + path}, WorkingDir: "/",
			Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Labels: map[string]string{ocispec.AnnotationDescription: "says that everything works"},
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{img.Layer.Digest}},
		History: []ocispec.History{{Created: &made, CreatedBy: "assembled by gantryd"}},
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return Image{}, fmt.Errorf("make image hello: %w", err)
	}
	img.Config = img.add(ocispec.MediaTypeImageConfig, raw)
	raw, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: img.Config, Layers: []ocispec.Descriptor{img.Layer},
	})
	if err != nil {
		return Image{}, fmt.Errorf("make image hello: %w", err)
	}
	img.Manifest = img.add(ocispec.MediaTypeImageManifest, raw)
	return img, nil
}

func (i *Image) add(mediaType string, raw []byte) ocispec.Descriptor {
	d := digest.FromBytes(raw)
	i.Content[d] = raw
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}
}

func archive(program []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, ModTime: made},
		{Typeflag: tar.TypeReg, Name: path, Mode: 0o755, ModTime: made, Size: int64(len(program))},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// assemble makes a static ELF program that writes text to its standard output and exits.
func assemble(arch, text string) ([]byte, error) {
	switch arch {
	case "amd64":
		return link(emX86_64, amd64, text), nil
	case "arm64":
		return link(emAArch64, arm64, text), nil
	}
	return nil, fmt.Errorf("image hello: there is no program for %s: %w", arch, errdefs.ErrNotImplemented)
}

// Package hello is the image that is embedded in the daemon, so that a first container needs neither a
// registry nor a network. It holds one program that prints a greeting.
//
// The program is assembled here, a few hundred bytes of machine code for write(2) and exit(2) in a
// minimal ELF file (elf(5)): no binary lies in the source tree, and none has to be built first.
package hello

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Name is the image's full reference.
const Name = "docker.io/library/hello:latest"

const greeting = `
Hello from gantry: this line was written by a container.

To show it, gantry did what it does for every container:
 1. The client, gantry, asked the daemon, gantryd, over its socket.
 2. The daemon took the image "hello", which is built into it, and a storage driver
    (a process of its own) made a root filesystem of it.
 3. A network driver (another process) gave it an address on a bridge.
 4. A small shim beside the container made its process, kept what it wrote, and saw how
    it ended. Had the daemon been killed meanwhile, you would be reading this all the same.

What to try next:
    gantry run -it --rm debian bash
    gantry run -d --name web -p 8080:80 nginx
    gantry --help

`

// Blob is one blob of the image.
type Blob struct {
	Descriptor v1.Descriptor
	Data       []byte
}

// Image is the image as its blobs: what a registry would send.
type Image struct {
	Manifest, Config, Layer Blob // the layer is a plain tar, so that its digest is its diffID
}

// Build makes the image for this machine. It is the same, digest for digest, each time.
func Build() (*Image, error) { return build(runtime.GOARCH) }

func build(arch string) (*Image, error) {
	program, err := program(arch, greeting)
	if err != nil {
		return nil, err
	}
	layer, err := layer(program)
	if err != nil {
		return nil, err
	}
	i := &Image{Layer: blob(v1.MediaTypeImageLayer, layer)}
	created := time.Unix(0, 0).UTC()
	config, err := json.Marshal(v1.Image{
		Created: &created, Author: "gantry", Platform: v1.Platform{OS: "linux", Architecture: arch},
		Config:  v1.ImageConfig{Cmd: []string{"/hello"}, WorkingDir: "/"},
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{i.Layer.Descriptor.Digest}},
		History: []v1.History{{Created: &created, CreatedBy: "assembled by gantryd"}},
	})
	if err != nil {
		return nil, fmt.Errorf("build image hello: %w", err)
	}
	i.Config = blob(v1.MediaTypeImageConfig, config)
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: i.Config.Descriptor, Layers: []v1.Descriptor{i.Layer.Descriptor},
	})
	if err != nil {
		return nil, fmt.Errorf("build image hello: %w", err)
	}
	i.Manifest = blob(v1.MediaTypeImageManifest, manifest)
	return i, nil
}

func blob(mediaType string, data []byte) Blob {
	return Blob{v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, data}
}

// layer is a tar with the program and the directories that every container is mounted into.
func layer(program []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	epoch := time.Unix(0, 0)
	for _, dir := range []string{"dev/", "etc/", "proc/", "sys/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: epoch}); err != nil {
			return nil, fmt.Errorf("build image hello: %w", err)
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "hello", Mode: 0o755, Size: int64(len(program)), ModTime: epoch}); err != nil {
		return nil, fmt.Errorf("build image hello: %w", err)
	}
	if _, err := w.Write(program); err != nil {
		return nil, fmt.Errorf("build image hello: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("build image hello: %w", err)
	}
	return b.Bytes(), nil
}

// The layout of the file: headers, code, text, in one read-only executable segment.
const (
	base       = 0x400000 // where the file is mapped
	headerSize = 64 + 56  // ELF header and one program header
)

// machines are the numbers of elf(5) and the code, given where the text is and how long.
var machines = map[string]struct {
	number uint16
	code   func(text uint64, length int) []byte
}{
	"amd64": {62, amd64},
	"arm64": {183, arm64},
}

// program is a static executable that writes text to standard output and exits with 0.
func program(arch, text string) ([]byte, error) {
	m, ok := machines[arch]
	if !ok {
		return nil, fmt.Errorf("build image hello: no program for %s: %w", arch, errdefs.ErrNotImplemented)
	}
	size := len(m.code(0, 0)) // the same for every address and length
	code := m.code(uint64(base+headerSize+size), len(text))
	total := uint64(headerSize + len(code) + len(text))
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&b, binary.LittleEndian, v) // a Buffer takes everything
		}
	}
	b.WriteString("\x7fELF")
	put([12]byte{2, 1, 1})                              // 64 bit, little endian, version 1
	put(uint16(2), m.number, uint32(1))                 // an executable
	put(uint64(base+headerSize), uint64(64), uint64(0)) // entry, program headers, no sections
	put(uint32(0), uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0))
	put(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), total, total, uint64(0x10000)) // load, read and execute
	b.Write(code)
	b.WriteString(text)
	return b.Bytes(), nil
}

// amd64 is: write(1, text, length); exit(0).
func amd64(text uint64, length int) []byte {
	le := func(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
	return bytes.Join([][]byte{
		{0xb8}, le(1), // mov eax, 1 (write)
		{0xbf}, le(1), // mov edi, 1
		{0xbe}, le(uint32(text)), // mov esi, text
		{0xba}, le(uint32(length)), // mov edx, length
		{0x0f, 0x05},   // syscall
		{0xb8}, le(60), // mov eax, 60 (exit)
		{0x31, 0xff}, // xor edi, edi
		{0x0f, 0x05}, // syscall
	}, nil)
}

// arm64 is the same.
func arm64(text uint64, length int) []byte {
	movz := func(reg, value uint32) uint32 { return 0xd2800000 | value<<5 | reg }
	movk16 := func(reg, value uint32) uint32 { return 0xf2a00000 | value<<5 | reg }
	const svc = 0xd4000001
	var b []byte
	for _, i := range []uint32{
		movz(0, 1),
		movz(1, uint32(text)&0xffff), movk16(1, uint32(text)>>16),
		movz(2, uint32(length)),
		movz(8, 64), svc, // write
		movz(0, 0),
		movz(8, 93), svc, // exit
	} {
		b = binary.LittleEndian.AppendUint32(b, i)
	}
	return b
}

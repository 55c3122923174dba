package hello

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestImage(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := New(arch)
		if err != nil {
			t.Fatal(err)
		}
		again, err := New(arch)
		if err != nil || again.Manifest.Digest != img.Manifest.Digest {
			t.Error("it differs each time:", err)
		}
		for _, d := range []ocispec.Descriptor{img.Manifest, img.Config, img.Layer} {
			if raw := img.Content[d.Digest]; int64(len(raw)) != d.Size || digest.FromBytes(raw) != d.Digest {
				t.Error(d)
			}
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(img.Content[img.Manifest.Digest], &m); err != nil || m.Config.Digest != img.Config.Digest || len(m.Layers) != 1 {
			t.Error(m, err)
		}
		program := programOf(t, img)
		f, err := elf.NewFile(bytes.NewReader(program))
		if err != nil {
			t.Fatal(err)
		}
		if f.Type != elf.ET_EXEC || f.Entry != base+codeAt || len(f.Progs) != 2 || f.Progs[0].Flags != elf.PF_R|elf.PF_X || f.Progs[1].Flags != elf.PF_R|elf.PF_W {
			t.Errorf("%+v %+v", f.FileHeader, f.Progs)
		}
		if !bytes.HasSuffix(program, []byte(Greeting)) {
			t.Error("the greeting is not at its end")
		}
	}
	if _, err := New("pdp11"); !errdefs.IsNotImplemented(err) {
		t.Error(err)
	}
}

func programOf(t *testing.T, img Image) []byte {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(img.Content[img.Layer.Digest]))
	for {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == path {
			raw, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
	}
}

// TestRuns executes the program for this architecture, and that for the other one in an emulator.
func TestRuns(t *testing.T) {
	for arch, emulator := range map[string]string{"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"} {
		t.Run(arch, func(t *testing.T) {
			img, err := New(arch)
			if err != nil {
				t.Fatal(err)
			}
			p := filepath.Join(t.TempDir(), path)
			if err := os.WriteFile(p, programOf(t, img), 0o700); err != nil { //nolint:gosec // it is to be executed
				t.Fatal(err)
			}
			cmd := exec.Command(p)
			if arch != runtime.GOARCH {
				e, err := exec.LookPath(emulator)
				if err != nil {
					t.Fatalf(`no %s to execute the program for %s with: "make setup" installs qemu-user`, emulator, arch)
				}
				cmd = exec.Command(e, p)
			}
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != Greeting {
				t.Fatalf("%q, %v", out, err)
			}
		})
	}
}

// TestInstructions compares with what an assembler makes of the same program.
func TestInstructions(t *testing.T) {
	want := []byte{
		0x20, 0x00, 0x80, 0xd2, // mov x0, #1
		0xe1, 0x00, 0x00, 0x10, // adr x1, .+28
		0x62, 0x00, 0x80, 0xd2, // mov x2, #3
		0x08, 0x08, 0x80, 0xd2, // mov x8, #64
		0x01, 0x00, 0x00, 0xd4, // svc #0
		0x00, 0x00, 0x80, 0xd2, // mov x0, #0
		0xa8, 0x0b, 0x80, 0xd2, // mov x8, #93
		0x01, 0x00, 0x00, 0xd4, // svc #0
	}
	if got := arm64(32, 3); !bytes.Equal(got, want) {
		t.Errorf("% x", got)
	}
}

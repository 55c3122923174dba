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

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestProgram runs the program of this machine, and reads that of every other.
func TestProgram(t *testing.T) {
	for arch := range machines {
		raw, err := program(arch, greeting)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(raw))
		if err != nil {
			t.Fatalf("%s: %v", arch, err)
		}
		if len(f.Progs) != 1 || f.Progs[0].Flags != elf.PF_R|elf.PF_X || f.Entry != base+headerSize {
			t.Errorf("%s: %+v", arch, f)
		}
		if arch != runtime.GOARCH {
			continue
		}
		path := filepath.Join(t.TempDir(), "hello")
		if err := os.WriteFile(path, raw, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path).Output(); err != nil || string(out) != greeting {
			t.Errorf("%v: %q", err, out)
		}
	}
	if _, err := program("pdp11", greeting); err == nil {
		t.Error("no error for a machine without a program")
	}
}

// TestBuild holds the image together: digests, sizes, what is in the layer; and the same each time.
func TestBuild(t *testing.T) {
	one, err := Build()
	if err != nil {
		t.Fatal(err)
	}
	two, err := Build()
	if err != nil {
		t.Fatal(err)
	}
	if one.Manifest.Descriptor.Digest != two.Manifest.Descriptor.Digest {
		t.Error("two builds differ")
	}
	for _, b := range []Blob{one.Manifest, one.Config, one.Layer} {
		if digest.FromBytes(b.Data) != b.Descriptor.Digest || int64(len(b.Data)) != b.Descriptor.Size {
			t.Errorf("%s: the descriptor is wrong", b.Descriptor.MediaType)
		}
	}
	var config v1.Image
	if err := json.Unmarshal(one.Config.Data, &config); err != nil {
		t.Fatal(err)
	}
	if len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != one.Layer.Descriptor.Digest || config.Architecture != runtime.GOARCH {
		t.Errorf("configuration: %+v", config)
	}
	seen := map[string]bool{}
	for r := tar.NewReader(bytes.NewReader(one.Layer.Data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen[h.Name] = true
	}
	if !seen["hello"] || !seen["proc/"] {
		t.Errorf("the layer holds %v", seen)
	}
}

package seccomp

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Default is moby's default profile compiled for a container with these capabilities ("CAP_CHOWN", …)
// in its bounding set, on this machine's architecture and kernel, and the digest of the bytes: SHA-256
// in hexadecimal.
func Default(caps []string) (filter []byte, digest string, err error) {
	p, err := DefaultProfile(caps)
	if err != nil {
		return nil, "", err
	}
	if filter, err = Compile(p); err != nil {
		return nil, "", err
	}
	return filter, digestOf(filter), nil
}

// DefaultProfile is what Default compiles, in the words of config.json: for a runtime that compiles itself.
func DefaultProfile(caps []string) (*specs.LinuxSeccomp, error) {
	spec := specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	p, err := profile.GetDefaultProfile(&spec)
	if err != nil {
		return nil, fmt.Errorf("evaluate default seccomp profile: %w", err)
	}
	return p, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// digests remembers what Default answered, by the capabilities in order: a daemon asks for the same few
// sets again and again. The machine's kernel does not change meanwhile.
var digests struct {
	mu sync.Mutex
	by map[string]string
}

// maxDigests bounds digests: capabilities come from users.
const maxDigests = 256

func recall(key string) string {
	digests.mu.Lock()
	defer digests.mu.Unlock()
	return digests.by[key]
}

func remember(key, digest string) {
	digests.mu.Lock()
	defer digests.mu.Unlock()
	if digests.by == nil || len(digests.by) >= maxDigests {
		digests.by = map[string]string{}
	}
	digests.by[key] = digest
}

// File is the path of Default(caps) as a file of dir, <digest>.bpf. It is compiled and written if it is
// not there, or is not what its name says. Whoever calls at the same time, or is killed, does no harm.
func File(dir string, caps []string) (path string, err error) {
	caps = slices.Compact(slices.Sorted(slices.Values(caps)))
	key := strings.Join(caps, ",")
	if digest := recall(key); digest != "" {
		if path := filepath.Join(dir, digest+".bpf"); intact(path, digest) {
			return path, nil
		}
	}
	filter, digest, err := Default(caps)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, digest+".bpf")
	if !intact(path, digest) {
		if err := write(path, filter); err != nil {
			return "", fmt.Errorf("keep seccomp filter %s: %w", path, err)
		}
	}
	remember(key, digest)
	return path, nil
}

// intact says that what is at path has the digest. Whatever stands in the way is found when writing.
func intact(path, digest string) bool {
	b, err := os.ReadFile(path)
	return err == nil && digestOf(b) == digest
}

// write makes the file appear whole, or not at all.
func write(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".filter-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

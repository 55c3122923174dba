package seccomp

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDefault(t *testing.T) {
	t.Parallel()
	mount, _ := number(x8664, "mount")
	chroot, _ := number(x8664, "chroot")
	seen := map[string]bool{}
	for _, c := range []struct {
		caps          []string
		mount, chroot bool
	}{
		{nil, false, false},
		{docker, false, true},
		{[]string{"CAP_SYS_ADMIN"}, true, false},
	} {
		b, digest, err := Default(c.caps)
		if err != nil || len(digest) != 64 || seen[digest] {
			t.Fatalf("%v: %q, %v", c.caps, digest, err)
		}
		seen[digest] = true
		p, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		for nr, want := range map[uint32]bool{mount: c.mount, chroot: c.chroot} {
			got := run(p, data{nr: nr, arch: unix.AUDIT_ARCH_X86_64}) == unix.SECCOMP_RET_ALLOW
			if wantedHere, _ := wanted(nil); wantedHere[0] == x8664 && got != want {
				t.Errorf("%v: call %d allowed: %t", c.caps, nr, got)
			}
		}
		again, same, err := Default(c.caps)
		if err != nil || same != digest || !bytes.Equal(again, b) {
			t.Errorf("%v: not the same twice: %v", c.caps, err)
		}
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	want, digest, err := Default(docker)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "seccomp")
	path := filepath.Join(dir, digest+".bpf")
	check := func(what string, caps []string) {
		t.Helper()
		got, err := File(dir, caps)
		if err != nil || got != path {
			t.Fatalf("%s: %q, %v", what, got, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", what, info.Mode(), err)
		}
		if have, _ := os.ReadFile(path); !bytes.Equal(have, want) {
			t.Errorf("%s: is not the filter", what)
		}
		if all, _ := os.ReadDir(dir); len(all) != 1 {
			t.Errorf("%s: left %v", what, all)
		}
	}
	check("first", docker)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	turned := slices.Clone(docker)
	slices.Reverse(turned)
	check("another order, and twice the same", append(turned, docker[0]))
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("written again without need: %v", err)
	}
	for what, damage := range map[string]func() error{
		"torn":    func() error { return os.WriteFile(path, want[:100], 0o600) },
		"empty":   func() error { return os.Truncate(path, 0) },
		"changed": func() error { return os.WriteFile(path, append(want[:len(want)-1:len(want)-1], 0x7f), 0o600) },
		"gone":    func() error { return os.RemoveAll(dir) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		check(what, docker)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if got, err := File(dir, docker); err != nil || got != path {
				t.Errorf("at once: %q, %v", got, err)
			}
		})
	}
	all.Wait()
	check("at once", docker)
	if _, err := File(path, docker); err == nil {
		t.Error("a directory that is a file was written to")
	}
}

func BenchmarkFile(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		if _, err := File(dir, docker); err != nil {
			b.Fatal(err)
		}
	}
}

package main

import (
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// nobody is a machine without the group.
func nobody(name string) (*user.Group, error) { return nil, user.UnknownGroupError(name) }

// TestSocketIsTheGroups: the socket is root's and the group's where there is one, else root's alone.
func TestSocketIsTheGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NEEDS ROOT: the socket is given to root and a group")
	}
	const gid = 12345
	group := func(name string) (*user.Group, error) {
		if name != "gantry" {
			return nil, user.UnknownGroupError(name)
		}
		return &user.Group{Name: name, Gid: strconv.Itoa(gid)}, nil
	}
	for name, c := range map[string]struct {
		lookup lookupGroup
		mode   os.FileMode
		gid    uint32
	}{"with the group": {group, 0o660, gid}, "without": {nobody, 0o600, uint32(os.Getegid())}} { //nolint:gosec // an id
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "gantry.sock")
			all, err := listen([]string{"unix://" + path}, tlsConfig{}, c.lookup)
			if err != nil {
				t.Fatal(err)
			}
			defer all[0].Close()
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			own, ok := st.Sys().(*syscall.Stat_t)
			if !ok || st.Mode().Perm() != c.mode || own.Uid != 0 || own.Gid != c.gid {
				t.Errorf("mode %o of %d:%d, want %o of 0:%d", st.Mode().Perm(), own.Uid, own.Gid, c.mode, c.gid)
			}
		})
	}
	bad := func(string) (*user.Group, error) { return &user.Group{Gid: "many"}, nil }
	path := filepath.Join(t.TempDir(), "gantry.sock")
	if _, err := listenUnix(path, bad); err == nil {
		t.Error("a group whose id is no number")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left")
	}
}

// TestListenUnix: what a dead daemon left is replaced; a live socket and anything that is no socket are not.
func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "gantry.sock")
	l, err := listenUnix(path, nobody)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path, nobody); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket that is served: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil { // as kill -9 leaves it: the file stays
		t.Fatal(err)
	}
	if l, err = listenUnix(path, nobody); err != nil {
		t.Fatalf("a socket that nobody serves: %v", err)
	}
	_ = l.Close()
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path, nobody); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if raw, _ := os.ReadFile(path); string(raw) != "mine" {
		t.Error("the file was taken away")
	}
}

// TestLockState: one daemon on a state directory.
func TestLockState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	one, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockState(dir); err == nil || !strings.Contains(err.Error(), "another gantryd uses "+dir) {
		t.Errorf("a second one: %v", err)
	}
	_ = one.Close()
	two, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = two.Close()
}

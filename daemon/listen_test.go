package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListenUnix: what a dead daemon left is replaced; a live socket and anything that is no socket are not.
func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "gantry.sock")
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm()&0o007 != 0 {
		t.Errorf("others may use the socket: %v %v", st.Mode(), err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket that is served: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil { // as kill -9 leaves it: the file stays
		t.Fatal(err)
	}
	if l, err = listenUnix(path); err != nil {
		t.Fatalf("a socket that nobody serves: %v", err)
	}
	_ = l.Close()
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "no socket") {
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

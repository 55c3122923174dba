package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestPrograms: what is registered, and what is found.
func TestPrograms(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"crun", "runsc", "youki"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	got := programs(map[string]runtimeConfig{
		"crun": {Path: "/opt/crun"}, "runsc": {Args: []string{"--platform=kvm"}}, "mine": {Path: "/opt/mine"}, "runc": {Args: []string{"--debug"}},
	})
	want := []struct{ name, path string }{
		{"crun", "/opt/crun"}, {"mine", "/opt/mine"}, {"runc", "runc"}, {"runsc", dir + "/runsc"},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, w := range want {
		if got[i].Name != w.name || got[i].Path != w.path {
			t.Errorf("%+v, want %+v", got[i], w)
		}
	}
	if got[3].Args[0] != "--platform=kvm" {
		t.Errorf("%+v", got[3])
	}
	if got := programs(nil); len(got) != 2 || got[0].Name != "crun" || got[1].Path != dir+"/runsc" {
		t.Errorf("without a word: %+v", got)
	}
}

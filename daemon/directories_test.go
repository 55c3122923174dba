package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDirectories: what is not gantry's is told, and nothing that a configuration puts there is.
func TestDirectories(t *testing.T) {
	c := defaults()
	c.Root = t.TempDir()
	c.State = filepath.Join(c.Root, "run", "state") // one below the other
	c.Listen = []string{"unix://" + c.State + "/sockets/g.sock", "tcp://127.0.0.1:1"}
	c.TLS.CA = filepath.Join(c.Root, "pki", "ca.pem")
	c.file = filepath.Join(c.Root, "gantryd.toml")
	c.Plugins = map[string]pluginConfig{"volume/x": {Path: filepath.Join(c.Root, "bin", "x")}}
	for _, d := range []string{"content", "containers", "plugins", "seccomp", "lost+found", "pki", "bin", "run/state/c", "run/state/netns", "run/state/plugins", "run/state/sockets", "junk", "run/state/junk"} {
		if err := os.MkdirAll(filepath.Join(c.Root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"gantry.db", "gantry.db.schema-1", "gantryd.toml", "run/state/lock", "gantry.dbx"} {
		if err := os.WriteFile(filepath.Join(c.Root, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	if err := c.Checks()[0].Run(t.Context(), func(subject, _ string, repair func(context.Context) error) {
		if repair != nil {
			t.Errorf("%s would be deleted", subject)
		}
		got = append(got, strings.TrimPrefix(subject, "file "+c.Root+"/"))
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"gantry.dbx", "junk", "run/state/junk"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

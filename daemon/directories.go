package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/internal/check"
)

// Checks compares root and state with what belongs there. What is below that belongs to the parts, and they look.
func (c *config) Checks() []check.Check {
	return []check.Check{{Name: "daemon.directories", Run: func(_ context.Context, report check.Report) error {
		var errs []error
		for _, dir := range []string{c.Root, c.State} {
			entries, err := os.ReadDir(dir)
			errs = append(errs, err)
			for _, e := range entries {
				if path := filepath.Join(dir, e.Name()); !c.expects(path) {
					// Not to be repaired: it may be somebody's only copy.
					report("file "+path, "it is in a directory of gantry's, and none of gantry's: take it away", nil)
				}
			}
		}
		return errors.Join(errs...)
	}}}
}

// expects reports whether path is something of ours, or leads to it.
func (c *config) expects(path string) bool {
	ours := []string{
		filepath.Join(c.Root, "content"), filepath.Join(c.Root, "containers"), filepath.Join(c.Root, "plugins"), filepath.Join(c.Root, "seccomp"),
		filepath.Join(c.State, "c"), filepath.Join(c.State, "netns"), filepath.Join(c.State, "plugins"), filepath.Join(c.State, "lock"),
		filepath.Join(c.Root, "lost+found"),             // where it is a filesystem of its own
		filepath.Clean(c.Root), filepath.Clean(c.State), // one may be in the other
		c.file, c.TLS.CA, c.TLS.Cert, c.TLS.Key, c.Programs.Shim, c.Programs.Plugin,
	}
	for _, l := range c.Listen {
		if socket, ok := strings.CutPrefix(l, "unix://"); ok {
			ours = append(ours, filepath.Clean(socket))
		}
	}
	for _, p := range c.Plugins {
		ours = append(ours, p.Path)
	}
	for _, o := range ours {
		if o == path || strings.HasPrefix(o, path+"/") {
			return true
		}
	}
	return path == c.database() || strings.HasPrefix(path, c.database()+".") // the copies that migrations leave beside it
}

// database is the store's file.
func (c *config) database() string { return filepath.Join(c.Root, "gantry.db") }

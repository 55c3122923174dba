package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// TestHooks: hooks are waited for although the shim reaps whatever it can, and are told to the runtime by
// config.json as it is read here.
func TestHooks(t *testing.T) {
	b := newBox(t, "true")
	log := filepath.Join(t.TempDir(), "log")
	b.spec.Hooks = &specs.Hooks{}
	hook := func(name string) []specs.Hook {
		var many []specs.Hook
		for i := range 10 { // some end before anybody waits for them
			many = append(many, specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", fmt.Sprintf("(sleep 0 &); echo %s%d >>%s", name, i, log)}, Env: []string{"PATH=/bin:/usr/bin"}})
		}
		return many
	}
	b.spec.Hooks.CreateRuntime, b.spec.Hooks.Poststart, b.spec.Hooks.Poststop = hook("create"), hook("start"), hook("stop")
	b.run()
	if x := b.wait(); x.GetCode() != 0 {
		t.Errorf("%+v", x)
	}
	_, err := b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{})
	b.ok(err)
	want := ""
	for _, name := range []string{"create", "start", "stop"} {
		for i := range 10 {
			want += fmt.Sprintf("%s%d\n", name, i)
		}
	}
	raw, err := os.ReadFile(log)
	b.ok(err)
	if string(raw) != want {
		t.Errorf("%q, want %q", raw, want)
	}
}

// TestFailingHook: whoever starts a container is told what its hook said.
func TestFailingHook(t *testing.T) {
	b := newBox(t, "sleep", "1000")
	b.spec.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo no licence >&2; exit 3"}}}} //nolint:staticcheck // deprecated, and done
	b.spawn()
	_, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
	if err == nil || !strings.Contains(err.Error(), "prestart[0] (/bin/sh): exit status 3") || !strings.Contains(err.Error(), "no licence") {
		t.Errorf("%v", err)
	}
}

package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
	"github.com/gantryd/gantry/services/containers/admit"
)

// wellKnown are OCI runtimes that need no configuration where they are in PATH.
var wellKnown = []string{"crun", "kata-runtime", "runc", "runsc"}

var runtimePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

// checkRuntimes says what is wrong with the runtimes of a configuration.
func checkRuntimes(rs map[string]runtimeConfig) error {
	var errs []error
	for name, r := range rs {
		switch {
		case name == admit.Native:
			errs = append(errs, fmt.Errorf("runtimes.%s: the native runtime is no program", name))
		case !runtimePattern.MatchString(name):
			errs = append(errs, fmt.Errorf("runtimes.%q: no name for a runtime (up to 64 letters, digits and .-_)", name))
		case r.Path != "" && !filepath.IsAbs(r.Path):
			errs = append(errs, fmt.Errorf("runtimes.%s: path %q is not absolute", name, r.Path))
		case r.Path == "" && !slices.Contains(wellKnown, name):
			errs = append(errs, fmt.Errorf("runtimes.%s: it has no path; only %s are looked for", name, strings.Join(wellKnown, ", ")))
		}
	}
	return errors.Join(errs...)
}

// programs are the OCI runtimes of this host, by name: those that are registered, and the well-known
// ones that are found. One that is registered stays in the list when its program is gone, so that
// whoever asks for it is told.
func programs(rs map[string]runtimeConfig) []admit.Program {
	var out []admit.Program
	for name, r := range rs {
		path := r.Path
		if path == "" {
			path = name
			if found, err := exec.LookPath(name); err == nil {
				path = found
			}
		}
		out = append(out, admit.Program{Name: name, Path: path, Args: r.Args})
	}
	for _, name := range wellKnown {
		if _, ok := rs[name]; ok {
			continue
		}
		if path, err := exec.LookPath(name); err == nil && filepath.IsAbs(path) {
			out = append(out, admit.Program{Name: name, Path: path})
		}
	}
	slices.SortFunc(out, func(a, b admit.Program) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// runtimes are programs of the configuration that was read last.
func (h *house) runtimes() []admit.Program { return programs(*h.registered.Load()) }

// runtimesInfo is every runtime that containers may be made by, the default first.
func (h *house) runtimesInfo() []*systemv1.Runtime {
	out := []*systemv1.Runtime{{Name: admit.Native}}
	for _, p := range h.runtimes() {
		out = append(out, &systemv1.Runtime{Name: p.Name, Path: p.Path, Args: p.Args})
	}
	return out
}

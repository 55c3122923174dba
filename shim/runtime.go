package main

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
)

// newRuntime returns the runtime that a boot names.
var newRuntime = func(name string) (runtime.Runtime, error) {
	switch name {
	case "", "native":
		return native.New()
	}
	return nil, fmt.Errorf("runtime %s: only the native one is built in: %w", name, errdefs.ErrNotImplemented)
}

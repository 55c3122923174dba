package main

import (
	"path/filepath"

	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
	"github.com/gantryd/gantry/shim/runtime/oci"
)

// ociDir is where a program that makes the container has its bundle, in the state directory: whoever
// buries the container removes it with the rest.
const ociDir = "oci"

// newRuntime returns the runtime that a boot names.
func newRuntime(b *shimv1.Boot, reap *reaper) (runtime.Runtime, error) {
	switch path := b.GetRuntime(); path {
	case "", "native":
		return native.New()
	default:
		return oci.New(oci.Options{
			Name: b.GetRuntimeName(), Path: path, Args: b.GetRuntimeArgs(), State: filepath.Join(b.GetStateDir(), ociDir), Guard: reap.guard,
		})
	}
}

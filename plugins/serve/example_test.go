package serve_test

import (
	"context"
	"iter"
	"path/filepath"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/serve"
	"github.com/gantryd/gantry/plugins/volume"
)

// driver is a volume backend of somebody else's.
type driver struct {
	root    string
	options struct {
		Server string `json:"server"`
	}
}

func (d *driver) Info(context.Context) (plugins.Info, error) {
	return plugins.Info{Family: plugins.Volume, Name: "elsewhere", Version: "1.0"}, nil
}

func (d *driver) Configure(_ context.Context, c plugins.Config) error {
	d.root = c.Root
	return c.Decode(&d.options)
}

func (d *driver) Create(_ context.Context, v volume.Volume) (volume.Created, error) {
	// Ask the server for a volume called v.ID; if it has one, that is it.
	return volume.Created{Handle: plugins.Handle("what the server calls it")}, nil
}

func (d *driver) Delete(context.Context, volume.Volume) error { return nil }

func (d *driver) Mount(_ context.Context, v volume.Volume, _ string) (plugins.Mount, error) {
	return plugins.Mount{Type: "nfs", Source: d.options.Server + ":" + filepath.Join("/export", v.ID), Options: []string{"nfsvers=4"}}, nil
}

func (d *driver) Unmount(context.Context, volume.Volume, string) error { return nil }

func (d *driver) All(context.Context) iter.Seq2[string, error] {
	return func(func(string, error) bool) {}
}

// The main function of a plugin is two lines.
func ExampleMain() {
	d := &driver{}
	serve.Main(d, serve.Drivers{Volume: d})
}

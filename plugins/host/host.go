// Package host finds, launches, watches and replaces plugin processes.
//
// What it hands out are stable handles: a caller keeps one for the life of the
// daemon, and each call finds the process that serves it now.
package host

import (
	"context"
	"time"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	"github.com/gantryd/gantry/plugins/volume"
	"github.com/gantryd/gantry/snapshotters"
)

// Host supervises plugin processes.
type Host struct{}

// Snapshotter returns the named storage driver.
func (h *Host) Snapshotter(name string) (snapshotters.Snapshotter, error) { return nil, nil }

// Network returns the named network driver.
func (h *Host) Network(name string) (network.Driver, error) { return nil, nil }

// Volume returns the named volume backend.
func (h *Host) Volume(name string) (volume.Backend, error) { return nil, nil }

// Has reports whether a driver has a capability.
func (h *Host) Has(f plugins.Family, name, capability string) bool { return false }

// Run supervises until ctx ends.
func (h *Host) Run(ctx context.Context) error { return nil }

// Limits bounds what one plugin may do to the daemon.
type Limits struct {
	Call    time.Duration // no call takes longer, whatever its caller says
	Restart time.Duration // a call waits this long for a plugin that is coming back
	Crashes int           // in a minute; then it is failed and calls fail at once
}

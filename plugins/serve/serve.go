// Package serve is what a plugin's main function calls.
package serve

import (
	"github.com/gantryd/gantry/plugins/network"
	"github.com/gantryd/gantry/plugins/volume"
	"github.com/gantryd/gantry/snapshotters"
)

// Drivers is what a plugin may serve; it fills in one.
type Drivers struct {
	Snapshotter snapshotters.Snapshotter
	Network     network.Driver
	Volume      volume.Backend
}

// Main serves d until the host goes away or says so.
func Main(d Drivers) {}

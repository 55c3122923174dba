// Command gantryd is the composition root: it builds the parts, joins them, and recovers.
package main

import (
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/supervise"
	"github.com/gantryd/gantry/plugins/host"
	"github.com/gantryd/gantry/services/containers"
	"github.com/gantryd/gantry/services/images"
	"github.com/gantryd/gantry/services/networks"
	"github.com/gantryd/gantry/services/snapshots"
	"github.com/gantryd/gantry/services/volumes"
)

func main() {
	var (
		db    *meta.DB
		plugs = &host.Host{}
		snaps = snapshots.New(db, plugs)
		imgs  = images.New(db, snaps)
		nets  = networks.New(db, plugs)
		vols  = volumes.New(db, plugs)
	)
	_ = containers.New(db, imgs, nets, vols, snaps, &supervise.Supervisor{}, "/run/gantry")
}

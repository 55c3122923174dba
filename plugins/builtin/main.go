// Gantry-plugin is every built-in driver: one executable, so that the processes share its text. Which one
// a process is, its argument says:
//
//	gantry-plugin snapshotter/overlay
//
// The daemon starts it; run by hand it says so. Without an argument it lists the drivers.
package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network/bridge"
	"github.com/gantryd/gantry/plugins/serve"
	"github.com/gantryd/gantry/plugins/volume/local"
	"github.com/gantryd/gantry/snapshotters/native"
	"github.com/gantryd/gantry/snapshotters/overlay"
)

// drivers makes each of them.
var drivers = map[string]func() (plugins.Plugin, serve.Drivers){
	"snapshotter/overlay": func() (plugins.Plugin, serve.Drivers) {
		d := overlay.New()
		return d, serve.Drivers{Snapshotter: d}
	},
	"snapshotter/native": func() (plugins.Plugin, serve.Drivers) {
		d := native.New()
		return d, serve.Drivers{Snapshotter: d}
	},
	"network/bridge": func() (plugins.Plugin, serve.Drivers) {
		d := bridge.New()
		return d, serve.Drivers{Network: d}
	},
	"volume/local": func() (plugins.Plugin, serve.Drivers) {
		d := local.New()
		return d, serve.Drivers{Volume: d}
	},
}

func main() {
	switch args := os.Args[1:]; {
	case len(args) == 0:
		for _, name := range names() {
			fmt.Println(name)
		}
	case len(args) > 1 || drivers[args[0]] == nil:
		fmt.Fprintf(os.Stderr, "gantry-plugin: %q is none of the built-in drivers: %q\n", args, names())
		os.Exit(2)
	default:
		serve.Main(drivers[args[0]]())
	}
}

func names() (out []string) {
	for name := range drivers {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

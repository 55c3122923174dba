package containers

import (
	"encoding/csv"
	"strconv"
	"strings"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// gpuClass is what nvidia calls its GPUs in the Container Device Interface (nvidia-ctk cdi generate).
const gpuClass = "nvidia.com/gpu="

// maxGPUs bounds a count: more are not in one machine.
const maxGPUs = 256

// parseGPUs reads the value of --gpus: all, a number, or fields as docker has them, device=0,1 in quotes.
// Capabilities and options are for docker's own hook; a description has all of them.
func parseGPUs(v string) ([]*containersv1.Device, error) {
	if v == "" {
		return nil, nil
	}
	fields, err := csv.NewReader(strings.NewReader(v)).Read()
	if err != nil {
		return nil, cli.Usagef(`--gpus %q: %w; write all, 2, or '"device=0,1"'`, v, err)
	}
	names := []string{}
	count := ""
	for _, f := range fields {
		key, value, has := strings.Cut(f, "=")
		switch {
		case !has && count == "":
			count = key
		case key == "count" && count == "":
			count = value
		case key == "device" && value != "":
			names = append(names, strings.Split(value, ",")...)
		case key == "driver" && (value == "nvidia" || value == "cdi"), key == "capabilities", key == "options":
		case key == "driver":
			return nil, cli.Usagef("--gpus %q: driver %q is not known; name the device with --device vendor.com/class=name", v, value)
		default:
			return nil, cli.Usagef(`--gpus %q: %q is not known; write all, 2, or '"device=0,1"'`, v, f)
		}
	}
	more, err := gpuCount(v, count, len(names) > 0)
	if err != nil {
		return nil, err
	}
	var out []*containersv1.Device
	for _, n := range append(names, more...) {
		out = append(out, &containersv1.Device{Cdi: gpuClass + n})
	}
	return out, nil
}

// gpuCount is the first few, or all; one if nothing is said.
func gpuCount(v, count string, named bool) ([]string, error) {
	switch {
	case named && count != "":
		return nil, cli.Usagef("--gpus %q: a count and devices contradict each other; take one of them away", v)
	case named:
		return nil, nil
	case count == "all" || count == "-1":
		return []string{"all"}, nil
	case count == "":
		count = "1"
	}
	n, err := strconv.ParseUint(count, 10, 16)
	if err != nil || n == 0 || n > maxGPUs {
		return nil, cli.Usagef(`--gpus %q: %q is no number of GPUs; write all, 2, or '"device=0,1"'`, v, count)
	}
	var first []string
	for i := range n {
		first = append(first, strconv.FormatUint(i, 10))
	}
	return first, nil
}

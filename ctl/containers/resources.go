package containers

import (
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// resourceFlags bound what a container may use: create, run and update have them.
type resourceFlags struct {
	memory, memorySwap, memoryReservation, cpus, cpusetCpus, cpusetMems string
	pids, cpuQuota, swappiness                                          int64
	cpuShares, cpuPeriod                                                uint64
	blkioWeight                                                         uint16
	oomKillDisable                                                      bool
	weights, readBps, writeBps, readIops, writeIops                     []string
}

// add declares those that can be changed while the container runs.
func (f *resourceFlags) add(fs *pflag.FlagSet) {
	fs.StringVarP(&f.memory, "memory", "m", "", "memory limit in bytes: 512m, 2g")
	fs.StringVar(&f.memorySwap, "memory-swap", "", "limit of memory and swap together; -1 for no limit (default: twice the memory)")
	fs.StringVar(&f.memoryReservation, "memory-reservation", "", "what it is pushed back to when memory is short: 256m")
	fs.StringVar(&f.cpus, "cpus", "", "how many processors it may use: 0.5, 2")
	fs.Uint64VarP(&f.cpuShares, "cpu-shares", "c", 0, "weight among others that want processors too (1024 is usual)")
	fs.Uint64Var(&f.cpuPeriod, "cpu-period", 0, "period in which processor time is counted, in microseconds")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "processor time in each period, in microseconds")
	fs.StringVar(&f.cpusetCpus, "cpuset-cpus", "", "processors it may use: 0-2,7")
	fs.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes it may use: 0,1")
	fs.Int64Var(&f.pids, "pids-limit", 0, "how many processes and threads it may have; -1 for no limit")
	fs.Uint16Var(&f.blkioWeight, "blkio-weight", 0, "weight among others that want block devices too: 10 to 1000")
}

// addFixed declares those that hold from create on.
func (f *resourceFlags) addFixed(fs *pflag.FlagSet) {
	fs.Int64Var(&f.swappiness, "memory-swappiness", -1, "how readily its memory is swapped: 0 to 100 (default: as the host's)")
	fs.BoolVar(&f.oomKillDisable, "oom-kill-disable", false, "let it wait for memory rather than kill it")
	fs.StringArrayVar(&f.weights, "blkio-weight-device", nil, "weight on one device: /dev/sda:200")
	fs.StringArrayVar(&f.readBps, "device-read-bps", nil, "limit reading from a device: /dev/sda:10mb")
	fs.StringArrayVar(&f.writeBps, "device-write-bps", nil, "limit writing to a device: /dev/sda:10mb")
	fs.StringArrayVar(&f.readIops, "device-read-iops", nil, "limit reads a second from a device: /dev/sda:1000")
	fs.StringArrayVar(&f.writeIops, "device-write-iops", nil, "limit writes a second to a device: /dev/sda:1000")
}

// resources reads the flags. What was not given is zero.
func (f *resourceFlags) resources(fs *pflag.FlagSet) (*containersv1.Resources, error) {
	r := &containersv1.Resources{
		CpusetCpus: f.cpusetCpus, CpusetMems: f.cpusetMems, CpuShares: f.cpuShares, CpuPeriodUsec: f.cpuPeriod, CpuQuotaUsec: f.cpuQuota,
		OomKillDisable: f.oomKillDisable, BlkioWeight: uint32(f.blkioWeight),
	}
	for _, step := range []func(*containersv1.Resources) error{f.memories, f.processors, f.blocks} {
		if err := step(r); err != nil {
			return nil, err
		}
	}
	if f.pids < -1 {
		return nil, cli.Usagef("--pids-limit %d: write a number, or -1 for no limit", f.pids)
	}
	r.Pids = max(f.pids, 0)
	if fs.Changed("memory-swappiness") && f.swappiness != -1 {
		if f.swappiness < 0 || f.swappiness > 100 {
			return nil, cli.Usagef("--memory-swappiness %d: write 0 to 100, or -1 for the host's", f.swappiness)
		}
		r.MemorySwappiness = &f.swappiness
	}
	return r, nil
}

func (f *resourceFlags) memories(r *containersv1.Resources) error {
	for _, x := range []struct {
		flag, value string
		to          *int64
	}{{"memory", f.memory, &r.MemoryBytes}, {"memory-swap", f.memorySwap, &r.MemorySwapBytes}, {"memory-reservation", f.memoryReservation, &r.MemoryReservationBytes}} {
		if x.value == "" {
			continue
		}
		if x.flag == "memory-swap" && x.value == "-1" {
			*x.to = -1
			continue
		}
		n, err := units.RAMInBytes(x.value)
		if err != nil || n < 0 {
			return cli.Usagef("--%s %q: no size; write bytes, or 512m, 2g", x.flag, x.value)
		}
		*x.to = n
	}
	return nil
}

func (f *resourceFlags) processors(r *containersv1.Resources) error {
	if f.cpus == "" {
		return nil
	}
	n, err := strconv.ParseFloat(f.cpus, 64)
	if err != nil || !(n >= 0 && n <= 1<<20) { // also not a number
		return cli.Usagef("--cpus %q: no number of processors; write 0.5 or 2", f.cpus)
	}
	r.CpuMillis = int64(n*1000 + 0.5)
	switch {
	case n > 0 && r.CpuMillis < 10:
		return cli.Usagef("--cpus %q: the least that the kernel can give is 0.01", f.cpus)
	case n > 0 && (f.cpuQuota != 0 || f.cpuPeriod != 0):
		return cli.Usagef("--cpus with --cpu-quota or --cpu-period: they say the same; take one of them away")
	}
	return nil
}

func (f *resourceFlags) blocks(r *containersv1.Resources) error {
	for _, w := range f.weights {
		path, value, err := onDevice("blkio-weight-device", w, "/dev/sda:200")
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n < 10 || n > 1000 {
			return cli.Usagef("--blkio-weight-device %q: a weight goes from 10 to 1000", w)
		}
		r.BlkioWeightDevices = append(r.BlkioWeightDevices, &containersv1.DeviceWeight{Path: path, Weight: uint32(n)})
	}
	for _, x := range []struct {
		flag   string
		values []string
		bytes  bool
		to     *[]*containersv1.DeviceRate
	}{
		{"device-read-bps", f.readBps, true, &r.ReadBps},
		{"device-write-bps", f.writeBps, true, &r.WriteBps},
		{"device-read-iops", f.readIops, false, &r.ReadIops},
		{"device-write-iops", f.writeIops, false, &r.WriteIops},
	} {
		for _, v := range x.values {
			rate, err := deviceRate(x.flag, v, x.bytes)
			if err != nil {
				return err
			}
			*x.to = append(*x.to, rate)
		}
	}
	return nil
}

func deviceRate(flag, v string, bytes bool) (*containersv1.DeviceRate, error) {
	example := "/dev/sda:1000"
	if bytes {
		example = "/dev/sda:10mb"
	}
	path, value, err := onDevice(flag, v, example)
	if err != nil {
		return nil, err
	}
	var n uint64
	if bytes {
		var size int64
		size, err = units.RAMInBytes(value)
		n = uint64(max(size, 0))
	} else {
		n, err = strconv.ParseUint(value, 10, 32)
	}
	if err != nil || n == 0 {
		return nil, cli.Usagef("--%s %q: %q is no rate; write %s", flag, v, value, example)
	}
	return &containersv1.DeviceRate{Path: path, Rate: n}, nil
}

// onDevice splits PATH:VALUE.
func onDevice(flag, v, example string) (path, value string, err error) {
	i := strings.LastIndexByte(v, ':')
	if i < 0 || !strings.HasPrefix(v, "/") {
		return "", "", cli.Usagef("--%s %q: write the path of a block device and a value: %s", flag, v, example)
	}
	return v[:i], v[i+1:], nil
}

package containers

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// inspectHostConfig is what was asked of the host, under docker's names.
type inspectHostConfig struct {
	Binds                                     []string
	NetworkMode                               string
	PortBindings                              map[string][]inspectBinding
	RestartPolicy                             inspectRestart
	AutoRemove, Init                          bool
	LogConfig                                 inspectLog
	Runtime                                   string
	Dns, ExtraHosts, GroupAdd                 []string
	Tmpfs                                     map[string]string
	Sysctls                                   map[string]string
	ShmSize                                   int64
	PidMode, IpcMode, UTSMode, UsernsMode     string
	CgroupnsMode, CgroupParent                string
	Privileged, ReadonlyRootfs                bool
	CapAdd, CapDrop, SecurityOpt              []string
	MaskedPaths, ReadonlyPaths                *[]string `json:",omitempty"` // empty lists: nothing is hidden or protected
	Devices                                   []inspectDevice
	DeviceCgroupRules                         []string
	DeviceRequests                            []inspectRequest
	Ulimits                                   []inspectUlimit
	OomScoreAdj                               int32
	OomKillDisable                            bool
	Memory, MemorySwap, MemoryReservation     int64
	MemorySwappiness                          *int64
	NanoCpus, CpuQuota                        int64
	CpuShares, CpuPeriod                      uint64
	CpusetCpus, CpusetMems                    string
	PidsLimit                                 int64
	BlkioWeight                               uint32
	BlkioWeightDevice                         []inspectWeight
	BlkioDeviceReadBps, BlkioDeviceWriteBps   []inspectRate
	BlkioDeviceReadIOps, BlkioDeviceWriteIOps []inspectRate
}

type inspectRestart struct {
	Name              string
	MaximumRetryCount uint32
}

type inspectLog struct {
	Type   string
	Config map[string]string
}

type inspectDevice struct{ PathOnHost, PathInContainer, CgroupPermissions string }

// inspectRequest is devices by names of the Container Device Interface.
type inspectRequest struct {
	Driver    string
	DeviceIDs []string
}

type inspectUlimit struct {
	Name       string
	Hard, Soft int64 // -1: no limit
}

type inspectWeight struct {
	Path   string
	Weight uint32
}

type inspectRate struct {
	Path string
	Rate uint64
}

func hostConfig(c *containersv1.Container) inspectHostConfig {
	spec := c.GetSpec()
	h := inspectHostConfig{
		NetworkMode: networkNames(c)[0], PortBindings: bindings(spec.GetPorts()), AutoRemove: spec.GetRemoveOnExit(), Init: spec.GetInit(),
		RestartPolicy: restartDocument(spec.GetRestart()), LogConfig: logDocument(spec.GetLog()), Runtime: or(spec.GetRuntime(), "native"),
		Dns: list0(spec.GetDns()), ExtraHosts: list0(spec.GetExtraHosts()), GroupAdd: list0(spec.GetGroups()), Sysctls: map[string]string{},
		CgroupParent: spec.GetCgroupParent(), ShmSize: spec.GetShmBytes(), OomScoreAdj: spec.GetOomScoreAdj(),
		PidMode: modeDocument(c, "pid", spec.GetPidNamespace(), ""), IpcMode: modeDocument(c, "ipc", spec.GetIpcNamespace(), "private"),
		UTSMode: modeDocument(c, "uts", spec.GetUtsNamespace(), ""), UsernsMode: modeDocument(c, "user", spec.GetUserNamespace(), ""),
		CgroupnsMode: modeDocument(c, "cgroup", spec.GetCgroupNamespace(), "private"),
		Ulimits:      []inspectUlimit{},
	}
	if h.ShmSize == 0 {
		h.ShmSize = 64 << 20
	}
	for _, x := range spec.GetSysctls() {
		h.Sysctls[x.GetName()] = x.GetValue()
	}
	for _, l := range spec.GetRlimits() {
		h.Ulimits = append(h.Ulimits, inspectUlimit{Name: l.GetName(), Hard: int64(l.GetHard()), Soft: int64(l.GetSoft())}) //nolint:gosec // -1 is docker's word for no limit
	}
	h.mounts(spec.GetVolumes())
	h.security(spec)
	h.resources(spec.GetResources())
	return h
}

// sharedWith is the id of the container whose namespace c joins, or what the user called it.
func sharedWith(c *containersv1.Container, namespace, asked string) string {
	for _, x := range c.GetShared() {
		if x.GetNamespace() == namespace {
			return x.GetContainer()
		}
	}
	return asked
}

func modeDocument(c *containersv1.Container, namespace string, n *containersv1.Namespace, own string) string {
	switch n.GetMode() {
	case containersv1.Namespace_MODE_HOST:
		return "host"
	case containersv1.Namespace_MODE_CONTAINER:
		return "container:" + sharedWith(c, namespace, n.GetContainer())
	case containersv1.Namespace_MODE_SHAREABLE:
		return "shareable"
	case containersv1.Namespace_MODE_NONE:
		return "none"
	case containersv1.Namespace_MODE_UNSPECIFIED:
	}
	return own
}

func restartDocument(p *containersv1.RestartPolicy) inspectRestart {
	r := inspectRestart{Name: "no", MaximumRetryCount: p.GetMaxAttempts()}
	switch p.GetWhen() {
	case containersv1.RestartPolicy_WHEN_FAILED:
		r.Name = "on-failure"
	case containersv1.RestartPolicy_WHEN_EXITED:
		r.Name = "always"
	case containersv1.RestartPolicy_WHEN_UNSPECIFIED:
	}
	return r
}

func logDocument(l *containersv1.LogOptions) inspectLog {
	d := inspectLog{Type: "gantry", Config: map[string]string{}}
	if l.GetMaxBytes() != 0 {
		d.Config["max-size"] = strconv.FormatInt(l.GetMaxBytes(), 10)
	}
	if l.GetMaxFiles() != 0 {
		d.Config["max-file"] = strconv.FormatUint(uint64(l.GetMaxFiles()), 10)
	}
	return d
}

func (h *inspectHostConfig) mounts(volumes []*containersv1.VolumeMount) {
	h.Binds, h.Tmpfs = []string{}, map[string]string{}
	for _, m := range volumes {
		if m.GetKind() == containersv1.VolumeMount_KIND_TMPFS {
			h.Tmpfs[m.GetTarget()] = strings.Join(m.GetOptions(), ",")
			continue
		}
		if m.GetSource() == "" {
			continue
		}
		b := m.GetSource() + ":" + m.GetTarget()
		if m.GetReadOnly() {
			b += ":ro"
		}
		h.Binds = append(h.Binds, b)
	}
}

func (h *inspectHostConfig) security(spec *containersv1.Spec) {
	h.Privileged, h.ReadonlyRootfs = spec.GetPrivileged(), spec.GetReadOnly()
	h.CapAdd, h.CapDrop, h.SecurityOpt = list0(spec.GetCapAdd()), list0(spec.GetCapDrop()), []string{}
	if spec.GetNoNewPrivileges() {
		h.SecurityOpt = append(h.SecurityOpt, "no-new-privileges")
	}
	switch s := spec.GetSeccomp(); {
	case s.GetUnconfined():
		h.SecurityOpt = append(h.SecurityOpt, "seccomp=unconfined")
	case len(s.GetProfile()) > 0:
		var short bytes.Buffer
		if json.Compact(&short, s.GetProfile()) != nil {
			short.Reset()
			short.Write(s.GetProfile())
		}
		h.SecurityOpt = append(h.SecurityOpt, "seccomp="+short.String())
	}
	if p := spec.GetApparmor(); p != "" {
		h.SecurityOpt = append(h.SecurityOpt, "apparmor="+p)
	}
	for _, l := range spec.GetSelinux() {
		h.SecurityOpt = append(h.SecurityOpt, "label="+l)
	}
	if spec.GetUnmask() || spec.GetPrivileged() {
		h.MaskedPaths, h.ReadonlyPaths = &[]string{}, &[]string{}
	}
	h.Devices, h.DeviceCgroupRules = []inspectDevice{}, list0(spec.GetDeviceRules())
	h.DeviceRequests = []inspectRequest{}
	for _, d := range spec.GetDevices() {
		if d.GetCdi() != "" {
			h.DeviceRequests = append(h.DeviceRequests, inspectRequest{Driver: "cdi", DeviceIDs: []string{d.GetCdi()}})
			continue
		}
		h.Devices = append(h.Devices, inspectDevice{d.GetHostPath(), or(d.GetPath(), d.GetHostPath()), or(d.GetAccess(), "rwm")})
	}
}

func (h *inspectHostConfig) resources(r *containersv1.Resources) {
	h.Memory, h.MemorySwap, h.MemoryReservation = r.GetMemoryBytes(), r.GetMemorySwapBytes(), r.GetMemoryReservationBytes()
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory
	}
	h.NanoCpus, h.CpuQuota, h.CpuPeriod, h.CpuShares = r.GetCpuMillis()*1e6, r.GetCpuQuotaUsec(), r.GetCpuPeriodUsec(), r.GetCpuShares()
	h.CpusetCpus, h.CpusetMems, h.PidsLimit, h.OomKillDisable = r.GetCpusetCpus(), r.GetCpusetMems(), r.GetPids(), r.GetOomKillDisable()
	if r != nil {
		h.MemorySwappiness = r.MemorySwappiness
	}
	h.BlkioWeight, h.BlkioWeightDevice = r.GetBlkioWeight(), []inspectWeight{}
	for _, d := range r.GetBlkioWeightDevices() {
		h.BlkioWeightDevice = append(h.BlkioWeightDevice, inspectWeight{d.GetPath(), d.GetWeight()})
	}
	h.BlkioDeviceReadBps, h.BlkioDeviceWriteBps = rateDocuments(r.GetReadBps()), rateDocuments(r.GetWriteBps())
	h.BlkioDeviceReadIOps, h.BlkioDeviceWriteIOps = rateDocuments(r.GetReadIops()), rateDocuments(r.GetWriteIops())
}

func rateDocuments(rates []*containersv1.DeviceRate) []inspectRate {
	out := []inspectRate{}
	for _, d := range rates {
		out = append(out, inspectRate{d.GetPath(), d.GetRate()})
	}
	return out
}

package ocispec

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// usual are what a container keeps of root's power: Docker's fourteen.
func usual() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// every is all of them, by number (capabilities(7)).
var every = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// CapabilityNames are the capabilities in a mask as the kernel writes it (proc_pid_status(5), CapBnd).
func CapabilityNames(mask uint64) (names []string) {
	for n, name := range every {
		if mask>>n&1 == 1 {
			names = append(names, name)
		}
	}
	return names
}

// all is "ALL", which stands for every capability.
const all = "ALL"

// canonical is a capability's name as it is in every, or "ALL".
func canonical(name string) string {
	name = strings.ToUpper(name)
	if name == all || strings.HasPrefix(name, "CAP_") {
		return name
	}
	return "CAP_" + name
}

// Capabilities is what a container may have of root's power, out of what the daemon has; nil stands for
// all there are. Where everything is added, or everything dropped, the other list makes exceptions; else
// what is both added and dropped is added, as with Docker. What is named the daemon need not have: the
// runtime warns of it and goes on.
func Capabilities(s *containersv1.Spec, have []string) []string {
	if have == nil {
		have = every
	}
	add, drop := canonicals(s.GetCapAdd()), canonicals(s.GetCapDrop())
	var out []string
	switch {
	case s.GetPrivileged():
		return slices.Clone(have)
	case slices.Contains(add, all):
		for _, c := range have {
			if !slices.Contains(drop, c) {
				out = append(out, c)
			}
		}
		return out
	case !slices.Contains(drop, all):
		for _, c := range usual() {
			if !slices.Contains(drop, c) {
				out = append(out, c)
			}
		}
	}
	for _, c := range add {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

func canonicals(names []string) (out []string) {
	for _, n := range names {
		out = append(out, canonical(n))
	}
	return out
}

func capabilitySets(names []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

func masked() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

func readOnly() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// Confined reports whether the daemon's own seccomp filter holds the container.
func Confined(s *containersv1.Spec) bool {
	return !s.GetPrivileged() && !s.GetSeccomp().GetUnconfined() && len(s.GetSeccomp().GetProfile()) == 0
}

// unconfined is the word for no AppArmor profile, and disable the one for no SELinux label.
const (
	unconfined = "unconfined"
	disable    = "disable"
)

// apparmor is the profile that the user names.
func apparmor(s *containersv1.Spec) string {
	if p := s.GetApparmor(); p != unconfined {
		return p
	}
	return ""
}

func checkSecurity(s *containersv1.Spec) error {
	for flag, names := range map[string][]string{"added": s.GetCapAdd(), "dropped": s.GetCapDrop()} {
		for _, n := range names {
			if c := canonical(n); c != all && !slices.Contains(every, c) {
				return invalid("capability %q to be %s: no such capability; NET_ADMIN and SYS_PTRACE are examples, ALL means every one", n, flag)
			}
		}
	}
	switch {
	case s.GetPrivileged() && len(s.GetCapDrop()) > 0:
		return invalid("privileged, without capability %s: a privileged container has every capability; add ALL and drop that one instead of privileged", s.GetCapDrop()[0])
	case s.GetSeccomp().GetUnconfined() && len(s.GetSeccomp().GetProfile()) > 0:
		return invalid("seccomp profile: one is given, and none is asked for: take one of them away")
	}
	for _, l := range s.GetSelinux() {
		if l != disable {
			return invalid("SELinux label %q: labels are not set by this daemon; disable is known", l)
		}
	}
	for _, g := range s.GetGroups() {
		if _, err := strconv.ParseUint(g, 10, 31); err != nil {
			return invalid("group %q: write its number, as getent group in the image shows it", g)
		}
	}
	if n := s.GetOomScoreAdj(); n < -1000 || n > 1000 {
		return invalid("OOM score adjustment %d: it goes from -1000 (never chosen) to 1000 (chosen first)", n)
	}
	return checkDevices(s)
}

// deviceRule is a line of the kernel's cgroup-v1/devices.rst.
var deviceRule = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

func checkDevices(s *containersv1.Spec) error {
	for _, r := range s.GetDeviceRules() {
		if _, err := parseRule(r); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, d := range s.GetDevices() {
		if d.GetCdi() != "" {
			if d.GetHostPath() != "" || d.GetPath() != "" || d.GetAccess() != "" {
				return invalid("device %s: its description says where it is and what may be done with it", d.GetCdi())
			}
			continue
		}
		to := or(d.GetPath(), d.GetHostPath())
		switch {
		case !strings.HasPrefix(d.GetHostPath(), "/"), !strings.HasPrefix(to, "/"), strings.ContainsRune(d.GetHostPath()+to, 0):
			return invalid("device %q as %q: paths must be absolute", d.GetHostPath(), to)
		case strings.Trim(d.GetAccess(), "rwm") != "":
			return invalid("device %s: access %q: write some of r, w and m (read, write, make)", d.GetHostPath(), d.GetAccess())
		case seen[to]:
			return invalid("device %s: there are two at %s", d.GetHostPath(), to)
		}
		seen[to] = true
	}
	return nil
}

// CDI are the devices that a spec names by the Container Device Interface.
func CDI(s *containersv1.Spec) (names []string) {
	for _, d := range s.GetDevices() {
		if d.GetCdi() != "" {
			names = append(names, d.GetCdi())
		}
	}
	return names
}

// parseRule reads one device rule.
func parseRule(rule string) (specs.LinuxDeviceCgroup, error) {
	f := deviceRule.FindStringSubmatch(rule)
	if f == nil || strings.Count(f[4], "r") > 1 || strings.Count(f[4], "w") > 1 || strings.Count(f[4], "m") > 1 {
		return specs.LinuxDeviceCgroup{}, invalid("device rule %q: write type, number and access, as in \"c 189:* rwm\"", rule)
	}
	r := specs.LinuxDeviceCgroup{Allow: true, Type: f[1], Access: f[4]}
	for i, to := range []**int64{&r.Major, &r.Minor} {
		if f[i+2] == "*" {
			continue
		}
		n, err := strconv.ParseInt(f[i+2], 10, 32)
		if err != nil {
			return r, invalid("device rule %q: %s is no number of a device", rule, f[i+2])
		}
		*to = &n
	}
	if r.Type == "a" && (r.Major != nil || r.Minor != nil || len(r.Access) != 3) {
		return r, invalid("device rule %q: of all types there are only all numbers and all access: \"a *:* rwm\"", rule)
	}
	return r, nil
}

// deviceRules lets a container make any device node and use those that every program expects, those
// that it was given, and what the user's rules say. A privileged one uses all.
func deviceRules(s *containersv1.Spec, given []Device) []specs.LinuxDeviceCgroup {
	if s.GetPrivileged() {
		return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	every := int64(-1)
	rule := func(major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: access}
	}
	rules := []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		rule(every, every, "m"),
		{Allow: true, Type: "b", Major: &every, Minor: &every, Access: "m"},
		rule(1, 3, "rwm"), rule(1, 5, "rwm"), rule(1, 7, "rwm"), rule(1, 8, "rwm"), rule(1, 9, "rwm"), // null zero full random urandom
		rule(5, 0, "rwm"), rule(5, 1, "rwm"), rule(5, 2, "rwm"), rule(136, every, "rwm"), // tty console ptmx pts
	}
	for _, d := range given {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: or(d.Access, "rwm")})
	}
	for _, line := range s.GetDeviceRules() {
		if r, err := parseRule(line); err == nil { // Check has looked at it
			rules = append(rules, r)
		}
	}
	return rules
}

// Device is a device of the host's that a container is given, with what it may do with it.
type Device struct {
	specs.LinuxDevice
	Access string // of "rwm"; "" means all
}

func nodes(given []Device) (out []specs.LinuxDevice) {
	for _, d := range given {
		out = append(out, d.LinuxDevice)
	}
	return out
}

func groups(s *containersv1.Spec) (out []uint32) {
	for _, g := range s.GetGroups() {
		if n, err := strconv.ParseUint(g, 10, 31); err == nil { // Check has looked at it
			out = append(out, uint32(n))
		}
	}
	return out
}

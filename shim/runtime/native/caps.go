package native

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capNames are the capabilities by their numbers (capabilities(7)).
var capNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// capSets is the five sets of a process.
type capSets struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

// capabilities reads config.json's sets, without what this process does not have itself: that is
// told to warn.
func (id identity) capabilities(c *specs.LinuxCapabilities, warn func(string, ...any)) (capSets, error) {
	var s capSets
	if c == nil {
		return s, nil
	}
	for _, x := range []struct {
		to    *uint64
		names []string
		have  uint64
	}{
		{&s.bounding, c.Bounding, id.bound},
		{&s.permitted, c.Permitted, id.caps},
		{&s.effective, c.Effective, id.caps},
		{&s.inheritable, c.Inheritable, id.caps},
		{&s.ambient, c.Ambient, id.caps},
	} {
		for _, name := range x.names {
			n := slices.Index(capNames, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
			if n < 0 {
				return s, fmt.Errorf("capability %q is unknown: %w", name, errdefs.ErrInvalidArgument)
			}
			if x.have>>n&1 == 0 {
				if x.to == &s.bounding {
					warn("this host does not grant a capability that was asked for", "capability", name)
				}
				continue
			}
			*x.to |= 1 << n
		}
	}
	s.effective &= s.permitted
	s.ambient &= s.permitted & s.inheritable
	return s, nil
}

func (p *program) capset(effective, permitted, inheritable uint64) {
	head := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted), Inheritable: uint32(inheritable)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32), Inheritable: uint32(inheritable >> 32)},
	}
	p.add(unix.SYS_CAPSET, hold(p, head), hold(p, data))
}

// Package admit decides which containers may be made: it reads what a user asks for, and refuses
// what cannot work before anything is made for it.
package admit

import (
	"fmt"
	"net/netip"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/ocispec"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

// maxSpec bounds what a user may say about one container: it is written with each change.
const maxSpec = 1 << 20

var goodName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// Program is an OCI runtime that this host has; without a path, the native one, which needs no program.
type Program struct {
	Name string
	Path string
	Args []string // before every verb
}

// Check refuses what could not work, before anything is made for it. The errors are of class
// InvalidArgument.
func Check(name string, labels map[string]string, spec *containersv1.Spec, runtimes []Program) error {
	switch {
	case spec.GetImage() == "":
		return invalid("no image is named")
	case name != "" && !goodName.MatchString(name):
		return invalid("name %q: use up to 128 letters, digits, '_', '.' and '-', beginning with a letter or digit", name)
	case proto.Size(spec) > maxSpec:
		return invalid("the description has %d bytes, at most %d are allowed", proto.Size(spec), maxSpec)
	}
	if err := checkRestart(spec); err != nil {
		return err
	}
	size := 0
	for k, v := range labels {
		if size += len(k) + len(v); k == "" || size > maxSpec/4 {
			return invalid("label %q: a label has a name, and all together %d bytes at most", k, maxSpec/4)
		}
	}
	if g := spec.GetStopGrace(); g != nil && (g.CheckValid() != nil || g.AsDuration() < 0) {
		return invalid("stop grace %v: it cannot be negative", g.AsDuration())
	}
	if _, err := StopSignal(spec.GetStopSignal(), ""); err != nil {
		return err
	}
	if err := checkLog(spec.GetLog()); err != nil {
		return err
	}
	r, err := Runtime(spec.GetRuntime(), runtimes)
	if err != nil {
		return err
	}
	if r.Path != "" && spec.GetInit() {
		return invalid("runtime %s: it has no small init; run it without, or with the runtime %s", r.Name, Native)
	}
	if err := checkNetworks(spec); err != nil {
		return err
	}
	if err := ocispec.Check(spec, runtime.NumCPU()); err != nil {
		return err
	}
	return checkHost(spec, thisHost())
}

// leastLog and mostLogs bound the files of a log: each costs a file's overhead, and a directory is read as a whole.
const leastLog, mostLogs = 4096, 1000

func checkLog(l *containersv1.LogOptions) error {
	switch {
	case l.GetMaxBytes() < -1 || l.GetMaxBytes() > 0 && l.GetMaxBytes() < leastLog:
		return invalid("a log file of %d bytes: it has %d or more (max-size=4k), or no limit (max-size=-1)", l.GetMaxBytes(), leastLog)
	case l.GetMaxFiles() > mostLogs:
		return invalid("a log of %d files: %d are the most", l.GetMaxFiles(), mostLogs)
	}
	return nil
}

// Changed is Check for what of a spec can be changed later.
func Changed(spec *containersv1.Spec) error {
	if err := checkRestart(spec); err != nil {
		return err
	}
	if err := ocispec.Check(spec, runtime.NumCPU()); err != nil {
		return err
	}
	return thisHost().resources(spec.GetResources())
}

func checkRestart(spec *containersv1.Spec) error {
	if spec.GetRemoveOnExit() && spec.GetRestart().GetWhen() != containersv1.RestartPolicy_WHEN_UNSPECIFIED {
		return invalid("it cannot be both started again and removed when it exits: take one away")
	}
	return nil
}

func checkNetworks(spec *containersv1.Spec) error {
	mode := spec.GetNetworkMode()
	if mode != containersv1.NetworkMode_NETWORK_MODE_UNSPECIFIED && len(spec.GetNetworks()) > 0 {
		return invalid("network %s: a container on the host's network, on another container's, or on none, joins no other", spec.GetNetworks()[0].GetNetwork())
	}
	for _, n := range spec.GetNetworks() {
		if n.GetNetwork() == "" {
			return invalid("a network without a name")
		}
		if a := n.GetAddress(); a != "" {
			if _, err := netip.ParseAddr(a); err != nil {
				return invalid("network %s: %q is no address", n.GetNetwork(), a)
			}
		}
	}
	if mode == containersv1.NetworkMode_NETWORK_MODE_NONE && len(spec.GetPorts()) > 0 {
		return invalid("a container on no network publishes no ports: take one away")
	}
	if mode == containersv1.NetworkMode_NETWORK_MODE_CONTAINER && len(spec.GetPorts()) > 0 {
		return invalid("a container on the network of %s publishes no ports: publish them there", spec.GetNetworkContainer())
	}
	return checkPorts(spec.GetPorts())
}

// checkPorts refuses what contradicts itself; whether a port of the host is free, the launch finds out.
func checkPorts(ports []*containersv1.PortMapping) error {
	for i, p := range ports {
		n := max(p.GetCount(), 1)
		switch {
		case !slices.Contains([]string{"", "tcp", "udp"}, p.GetProtocol()):
			return invalid("port %d: protocol %q is not known; tcp and udp are", p.GetContainerPort(), p.GetProtocol())
		case p.GetContainerPort() == 0 || p.GetContainerPort()+n-1 > 65535 || n > 65535:
			return invalid("port %d of the container (%d of them): ports go from 1 to 65535", p.GetContainerPort(), n)
		case p.GetHostPort() > 0 && p.GetHostPort()+n-1 > 65535:
			return invalid("port %d of the host (%d of them): ports go from 1 to 65535", p.GetHostPort(), n)
		}
		if a := p.GetHostAddress(); a != "" {
			host, err := netip.ParseAddr(a)
			if err != nil {
				return invalid("port %d: %q is no address of the host", p.GetContainerPort(), a)
			}
			if host = host.Unmap(); host.Is6() && !host.IsUnspecified() {
				return invalid("port %d: it cannot be published on %s: networks are IPv4 only; name an IPv4 address, or none", p.GetContainerPort(), a)
			}
		}
		for _, q := range ports[:i] {
			if p.GetHostPort() > 0 && q.GetHostPort() > 0 && proto1(p) == proto1(q) && p.GetHostAddress() == q.GetHostAddress() &&
				p.GetHostPort() < q.GetHostPort()+max(q.GetCount(), 1) && q.GetHostPort() < p.GetHostPort()+n {
				return invalid("port %d of the host is published twice", p.GetHostPort())
			}
		}
	}
	return nil
}

func proto1(p *containersv1.PortMapping) string {
	if p.GetProtocol() == "" {
		return "tcp"
	}
	return p.GetProtocol()
}

// Native is the name of the runtime that is there without a program, and the default.
const Native = "native"

// Runtime finds what makes the process; "" is native. Programs that nobody has registered are not
// executed: whoever may make a container may not therefore choose what the daemon runs.
func Runtime(name string, runtimes []Program) (Program, error) {
	if name == "" || name == Native {
		return Program{Name: Native}, nil
	}
	known := []string{Native}
	for _, r := range runtimes {
		if r.Name != name {
			known = append(known, r.Name)
			continue
		}
		if st, err := os.Stat(r.Path); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			return Program{}, invalid("runtime %s: there is no program at %s", name, r.Path)
		}
		return r, nil
	}
	slices.Sort(known)
	return Program{}, invalid("runtime %q is not known; there are: %s (others are registered in the daemon's configuration, under runtimes)", name, strings.Join(known, ", "))
}

// StopSignal is the signal that asks a container to stop: the user's, else the image's, else SIGTERM.
func StopSignal(user, image string) (uint32, error) {
	for _, name := range []string{user, image} {
		if name != "" {
			return Signal(name)
		}
	}
	return uint32(syscall.SIGTERM), nil
}

// lastSignal is the last of the real-time signals (signal(7)).
const lastSignal = 64

// Signal reads a signal's name, with or without SIG, or its number.
func Signal(name string) (uint32, error) {
	sig, err := signal.ParseSignal(name)
	if err != nil || sig < 1 || sig > lastSignal {
		return 0, invalid("signal %q: no such signal", name)
	}
	return uint32(sig), nil
}

// Volumes is what the user mounts and, where he mounts nothing there, the volumes that the image
// declares. Those without a name get a fresh one, that nobody else has.
func Volumes(spec *containersv1.Spec, image *imagesv1.Config, fresh func() string) ([]*containersv1.VolumeMount, error) {
	var out []*containersv1.VolumeMount
	taken := map[string]bool{}
	for _, v := range spec.GetVolumes() {
		v = proto.CloneOf(v)
		v.Kind, v.Target = ocispec.KindOf(v), path.Clean(v.GetTarget())
		if v.GetKind() == containersv1.VolumeMount_KIND_VOLUME && v.GetSource() == "" {
			v.Source = fresh()
		}
		if v.GetKind() == containersv1.VolumeMount_KIND_BIND && !v.GetCreateSource() {
			if _, err := os.Stat(v.GetSource()); err != nil {
				return nil, fmt.Errorf("mount at %q: the path on the host: %w: %w", v.GetTarget(), err, errdefs.ErrInvalidArgument)
			}
		}
		taken[v.GetTarget()] = true
		out = append(out, v)
	}
	for _, target := range image.GetVolumes() {
		if target = path.Clean("/" + target); target == "/" || taken[target] {
			continue
		}
		taken[target] = true
		out = append(out, &containersv1.VolumeMount{Kind: containersv1.VolumeMount_KIND_VOLUME, Source: fresh(), Target: target})
	}
	return out, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

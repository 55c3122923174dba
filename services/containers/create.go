package containers

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	containernames "github.com/gantryd/gantry/services/containers/names"
	"github.com/gantryd/gantry/snapshotters"
)

// maxSpec bounds what a user may say about one container: it is written with each change.
const maxSpec = 1 << 20

var goodName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$`)

// Create reserves everything a container needs and starts nothing.
func (s *Service) Create(ctx context.Context, name string, labels map[string]string, spec *containersv1.Spec) (c *containersv1.Container, err error) {
	defer func() { err = wrap(err, "create container %s", name) }()
	if err := s.check(name, labels, spec); err != nil {
		return nil, err
	}
	if spec.GetNetworkMode() != containersv1.NetworkMode_NETWORK_MODE_HOST { // there, as with docker, all ports are the host's and none is published
		if err := s.Networks.Check(ctx, spec, ""); err != nil {
			return nil, err
		}
	}
	snapshotter := spec.GetSnapshotter()
	if snapshotter == "" {
		snapshotter = s.Snapshotter
	}
	image, err := s.Images.Resolve(ctx, spec.GetImage(), snapshotter)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%w; fetch it with: gantry pull %s", err, spec.GetImage())
	} else if err != nil {
		return nil, err
	}
	if c, err = s.record(name, labels, spec, image, snapshotter); err != nil {
		return nil, err
	}
	if err := s.make(ctx, c); err != nil {
		return nil, err
	}
	k, err := s.keeperOf(c)
	if err != nil {
		return nil, err
	}
	return k.last(), nil
}

// make claims, prepares and records c, which gets a name if it has none.
func (s *Service) make(ctx context.Context, c *containersv1.Container) (err error) {
	id, o := c.GetMeta().GetId(), c.GetOrigin()
	drv := o.GetSnapshotter()
	claims := []*storev1.Claim{
		claim(meta.Make, kindContainer, "", id), claim(meta.Use, kindImage, "", o.GetImageId()), claim(meta.Make, kindSnapshot, drv, id),
	}
	if o.GetChainId() != "" {
		claims = append(claims, claim(meta.Use, kindSnapshot, drv, o.GetChainId()))
	}
	var op *meta.Op
	if err := s.DB.Update(func(tx *meta.Tx) error {
		if n := c.GetMeta().GetName(); n != "" {
			if err := free(tx, n); err != nil { // the commit decides; this saves the work
				return err
			}
		}
		op, err = tx.Begin("container.create", claims...)
		return err
	}); err != nil {
		return err
	}
	defer func() { s.untidyIf(op, err) }()
	defer op.End(ctx, &err)
	fault.Point("containers.create.claimed")
	wrote := make(chan error, 1)
	go func() { wrote <- s.etc(c) }() // meanwhile: new directories cost the disk as much as the driver's answer costs
	_, err = s.Snapshots.Prepare(ctx, op, drv, id, o.GetChainId(), snapshotters.Options{Volatile: c.GetSpec().GetRemoveOnExit()})
	if werr := <-wrote; err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	fault.Point("containers.create.prepared")
	if err := s.Volumes.Ensure(ctx, op, c); err != nil {
		return err
	}
	return op.Commit(func(tx *meta.Tx) error {
		if c.Meta.Name == "" {
			if err := christen(tx, c); err != nil {
				return err
			}
		}
		return s.t.put(tx, c)
	})
}

// free is Reserve's answer without its effect.
func free(tx *meta.Tx, name string) error {
	holder, err := names.Resolve(tx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("the name %q is in use by container %s: remove that one (gantry rm), or choose another name: %w", name, short(holder), errdefs.ErrAlreadyExists)
}

// christen makes up a name.
func christen(tx *meta.Tx, c *containersv1.Container) error {
	for attempt := range 64 {
		n := containernames.Random(attempt)
		if err := names.Reserve(tx, n, c.GetMeta().GetId()); err == nil {
			c.Meta.Name = n
			return nil
		} else if !errdefs.IsAlreadyExists(err) {
			return err
		}
	}
	return fmt.Errorf("no name is left: give one with --name: %w", errdefs.ErrResourceExhausted)
}

// record is what is known of a container before anything is made for it.
func (s *Service) record(name string, labels map[string]string, spec *containersv1.Spec, image *imagesv1.Image, snapshotter string) (*containersv1.Container, error) {
	command, err := ocispec.Command(spec, image.GetConfig())
	if err != nil {
		return nil, err
	}
	volumes, err := resolveVolumes(spec, image.GetConfig())
	if err != nil {
		return nil, err
	}
	return &containersv1.Container{
		Meta:   &typesv1.Meta{Id: containernames.ID(), Name: name, Labels: labels, CreatedAt: now()},
		Spec:   proto.CloneOf(spec),
		Wanted: containersv1.Wanted_WANTED_STOPPED,
		Status: &containersv1.Status{Phase: containersv1.Phase_PHASE_CREATED},
		Origin: &containersv1.Origin{
			Image: image.GetMeta().GetName(), ImageId: image.GetMeta().GetId(), ChainId: image.GetChainId(),
			Snapshotter: snapshotter, Config: image.GetConfig(),
		},
		Volumes: volumes,
		Command: command,
	}, nil
}

// resolveVolumes is what the user mounts and, where he mounts nothing there, the volumes that the image
// declares. Those without a name get one that nobody else has.
func resolveVolumes(spec *containersv1.Spec, image *imagesv1.Config) ([]*containersv1.VolumeMount, error) {
	var out []*containersv1.VolumeMount
	taken := map[string]bool{}
	for _, v := range spec.GetVolumes() {
		v = proto.CloneOf(v)
		v.Kind, v.Target = ocispec.KindOf(v), path.Clean(v.GetTarget())
		if v.GetKind() == containersv1.VolumeMount_KIND_VOLUME && v.GetSource() == "" {
			v.Source = containernames.ID()
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
		out = append(out, &containersv1.VolumeMount{Kind: containersv1.VolumeMount_KIND_VOLUME, Source: containernames.ID(), Target: target})
	}
	return out, nil
}

// check refuses what could not work, before anything is made for it.
func (s *Service) check(name string, labels map[string]string, spec *containersv1.Spec) error {
	switch {
	case spec.GetImage() == "":
		return invalid("no image is named")
	case name != "" && !goodName.MatchString(name):
		return invalid("name %q: use 2 to 128 letters, digits, '_', '.' and '-', beginning with a letter or digit", name)
	case proto.Size(spec) > maxSpec:
		return invalid("the description has %d bytes, at most %d are allowed", proto.Size(spec), maxSpec)
	case spec.GetRemoveOnExit() && spec.GetRestart().GetWhen() != containersv1.RestartPolicy_WHEN_UNSPECIFIED:
		return invalid("it cannot be both started again and removed when it exits: take one away")
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
	if _, err := stopSignal(spec.GetStopSignal(), ""); err != nil {
		return err
	}
	if l := spec.GetLog(); l.GetMaxBytes() < -1 || l.GetMaxBytes() > 0 && l.GetMaxBytes() < 4096 || l.GetMaxFiles() > 1000 {
		return invalid("log of %d files of %d bytes: a file has 4096 bytes or more (-1 for no limit), and 1000 files are the most", l.GetMaxFiles(), l.GetMaxBytes())
	}
	if _, err := s.runtime(spec.GetRuntime()); err != nil {
		return err
	}
	if err := checkNetworks(spec); err != nil {
		return err
	}
	return ocispec.Check(spec, runtime.NumCPU())
}

func checkNetworks(spec *containersv1.Spec) error {
	mode := spec.GetNetworkMode()
	if mode != containersv1.NetworkMode_NETWORK_MODE_UNSPECIFIED && len(spec.GetNetworks()) > 0 {
		return invalid("network %s: a container on the host's network, or on none, joins no other", spec.GetNetworks()[0].GetNetwork())
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
			if _, err := netip.ParseAddr(a); err != nil {
				return invalid("port %d: %q is no address of the host", p.GetContainerPort(), a)
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

// runtime finds what makes the process: "" is native, any other word is a path, or a name from the configuration or $PATH.
func (s *Service) runtime(name string) (string, error) {
	switch {
	case name == "" || name == "native":
		return "", nil
	case s.Runtimes[name] != "":
		name = s.Runtimes[name]
	case !filepath.IsAbs(name) && strings.Contains(name, "/"):
		return "", invalid("runtime %q: give a name or an absolute path", name)
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return "", invalid("runtime %q: %v; native needs no program", name, err)
	}
	return found, nil
}

// stopSignal is the signal that asks a container to stop.
func stopSignal(user, image string) (uint32, error) {
	for _, name := range []string{user, image} {
		if name == "" {
			continue
		}
		sig, err := signal.ParseSignal(name)
		if err != nil {
			return 0, invalid("signal %q: no such signal", name)
		}
		return uint32(sig), nil //nolint:gosec // ParseSignal gives 1 to 64
	}
	return 15, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// wrap puts what was tried before an error. A name that is not known is left out.
func wrap(err error, format, name string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.TrimRight(fmt.Sprintf(format, name), " "), err)
}

// untidyIf has an operation that failed looked at again: undoing it may have failed too.
func (s *Service) untidyIf(op *meta.Op, err error) {
	if err != nil && s.DB.Left(op.ID()) {
		s.mess()
	}
}

package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/ocispec"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// protocol is the version of the shim contract that this daemon speaks.
const protocol = 1

// What is kept of a container's output where its user does not say.
const (
	logBytes = 10 << 20
	logFiles = 3
)

// bundle writes the files that the container is made from.
func (l *launch) bundle() error {
	if err := sources(l.c); err != nil {
		return err
	}
	if err := l.s.etc(l.c); err != nil { // the host's may have changed since the last time
		return err
	}
	o := ocispec.Options{
		Instance: l.s.Instance, RootFS: l.s.state(l.k.id).RootFS(), Etc: l.s.dir(l.k.id), NetNS: l.netns, Volumes: l.volumes, Have: l.s.Capabilities,
	}
	l.others(&o)
	if err := ofHost(l.c.GetSpec(), &o); err != nil {
		return err
	}
	spec, err := ocispec.Build(l.c, o)
	if err != nil {
		return err
	}
	if l.runtime.Path != "" && l.s.SeccompProfile != nil && ocispec.Confined(l.c.GetSpec()) { // it compiles the filter itself
		if spec.Linux.Seccomp, err = l.s.SeccompProfile(ocispec.Capabilities(l.c.GetSpec(), l.s.Capabilities)); err != nil {
			return fmt.Errorf("seccomp profile: %w", err)
		}
	}
	if err := l.s.CDI.Inject(spec, ocispec.CDI(l.c.GetSpec())); err != nil {
		return err
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	return os.WriteFile(l.s.state(l.k.id).Config(), raw, 0o600)
}

// etc makes a container's directory, and the files in it that are mounted in its /etc.
func (s *Service) etc(c *containersv1.Container) error {
	if err := ocispec.WriteEtc(s.dir(c.GetMeta().GetId()), &containersv1.Container{Meta: c.GetMeta(), Spec: c.GetSpec()}, s.Host); err != nil {
		return fmt.Errorf("files for /etc: %w", err)
	}
	return nil
}

// sources makes, or looks for, the paths of the host that are mounted.
func sources(c *containersv1.Container) error {
	for _, v := range c.GetVolumes() {
		if v.GetKind() != containersv1.VolumeMount_KIND_BIND {
			continue
		}
		_, err := os.Stat(v.GetSource())
		if errors.Is(err, fs.ErrNotExist) && v.GetCreateSource() {
			err = os.MkdirAll(v.GetSource(), 0o755) //nolint:gosec // as docker's -v does
		}
		if err != nil {
			return fmt.Errorf("mount at %s: the path on the host: %w: %w", v.GetTarget(), err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// message is what a shim is told when it is born.
func (l *launch) message(ctx context.Context, rootfs []*typesv1.Mount) (_ *shimv1.Boot, err error) {
	spec, id := l.c.GetSpec(), l.k.id
	run := l.c.GetStatus().GetRuns() + 1
	if last, ok, err := l.s.state(id).LastExit(); err == nil && ok { // also of one that was never committed
		run = max(run, last.Run+1)
	}
	b := &shimv1.Boot{
		Protocol: protocol, ContainerId: id, StateDir: l.s.state(id).State, Dir: l.s.dir(id), Rootfs: rootfs,
		DaemonVersion: l.s.Version, Instance: l.s.Instance, Netns: l.netns, Run: run,
		Joins: l.joins, User: ocispec.User(l.c), Restart: restart(spec.GetRestart()), Init: spec.GetInit(), OpenStdin: spec.GetOpenStdin(), StdinOnce: spec.GetStdinOnce(), Create: true,
		Log: &shimv1.LogSink{Path: l.s.state(id).Log(), MaxBytes: spec.GetLog().GetMaxBytes(), MaxFiles: spec.GetLog().GetMaxFiles()},
	}
	if l.shares() {
		b.ShmBytes = ocispec.ShmBytes(spec)
	}
	l.s.bound(b.GetLog())
	if l.runtime.Path != "" {
		b.Runtime, b.RuntimeName, b.RuntimeArgs = l.runtime.Path, l.runtime.Name, l.runtime.Args
		return b, nil
	}
	if l.s.Seccomp != nil && ocispec.Confined(spec) {
		if b.Seccomp, err = l.s.Seccomp(ctx, ocispec.Capabilities(spec, l.s.Capabilities)); err != nil {
			return nil, fmt.Errorf("seccomp filter: %w", err)
		}
	}
	return b, nil
}

// bound fills in how much of a log is kept.
func (s *Service) bound(log *shimv1.LogSink) {
	size, files := int64(0), uint32(0)
	if s.LogLimits != nil {
		size, files = s.LogLimits()
	}
	for _, n := range []int64{size, logBytes} {
		if log.MaxBytes == 0 {
			log.MaxBytes = n
		}
	}
	for _, n := range []uint32{files, logFiles} {
		if log.MaxFiles == 0 {
			log.MaxFiles = n
		}
	}
}

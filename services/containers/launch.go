package containers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/internal/sentence"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/containers/admit"
)

// Reasons that programs can tell a failed start by.
const (
	ReasonNotFound      = "command-not-found"      // docker's users expect exit code 127
	ReasonNotExecutable = "command-not-executable" // and 126
)

// launch is what a keeper's launch knows on its way.
type launch struct {
	s *Service
	k *keeper
	c *containersv1.Container
	b *shimv1.Boot

	op        *meta.Op
	netns     string
	owners    owners
	joins     []*shimv1.Join
	endpoints []*networksv1.Endpoint
	volumes   []*typesv1.Mount
	runtime   admit.Program
	shim      supervise.Shim
	pid       uint32
	warnings  []string // of the shim: what could only be done in part
	clock     clock
}

// clock notes when a launch got where, for those who want to know where the time goes.
type clock struct {
	began time.Time

	mu    sync.Mutex
	steps []any // names and durations, as slog takes them
}

func (c *clock) mark(step string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps = append(c.steps, step, time.Since(c.began))
}

// launch makes a process of a record. That the process cannot be made is written into the status
// and told to whoever started it; an error means that the launch could not even begin.
func (k *keeper) launch(ctx context.Context, c *containersv1.Container) error {
	ctx, cancel := context.WithTimeoutCause(ctx, launchTime, fmt.Errorf("not started within %v: %w", launchTime, context.DeadlineExceeded))
	defer cancel()
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	k.launching(interrupt)
	defer k.launching(nil)
	if k.last().GetWanted() != containersv1.Wanted_WANTED_RUNNING { // before interrupt was known
		return nil
	}
	if k.held { // by a run that ended: no name, port or address may be there twice
		if err := k.release(ctx, c); err != nil {
			return k.refused(ctx, c, err)
		}
	}
	l := &launch{s: k.s, k: k, c: c, clock: clock{began: time.Now()}}
	if err := l.begin(ctx); err != nil {
		return k.refused(ctx, c, err)
	}
	if err := l.act(ctx); err != nil {
		return l.failed(ctx, err)
	}
	return nil
}

// refused tells whoever started the container that the launch could not begin.
func (k *keeper) refused(ctx context.Context, c *containersv1.Container, err error) error {
	if k.s.ctx.Err() != nil {
		return err
	}
	l := &launch{s: k.s, k: k, c: c}
	return l.record(context.Cause(ctx), err)
}

// begin claims all that a launch makes. Whoever is in the way is waited for, a little.
func (l *launch) begin(ctx context.Context) error {
	ctx, cancel := l.s.waiting(ctx)
	defer cancel()
	id := l.k.id
	claims := []*storev1.Claim{claim(meta.Use, kindContainer, "", id), claim(meta.Use, kindSnapshot, l.c.GetOrigin().GetSnapshotter(), id)}
	if l.ownNetwork() {
		claims = append(claims, claim(meta.Make, kindNetNS, "", id))
	}
	claims = append(claims, claim(meta.Make, kindShim, "", id))
	owners, err := l.s.owners(l.c)
	if err != nil {
		return err
	}
	claims = append(claims, owners.claims()...)
	l.owners = owners
	return rpc.Retry(ctx, func(context.Context) error {
		return l.k.status(func(is *containersv1.Status) {
			is.Phase, is.Message, is.StartFailed, is.Pid = containersv1.Phase_PHASE_STARTING, "", false, 0
		}, func(tx *meta.Tx) (err error) {
			l.op, err = tx.Begin("container.launch", append(claims, l.s.Volumes.MountClaims(tx, l.c)...)...)
			return err
		})
	})
}

func (l *launch) ownNetwork() bool {
	return ocispec.OwnNetwork(l.c.GetSpec())
}

// act makes everything and commits. While the network driver works, the shim is started and makes
// the container; its process waits.
func (l *launch) act(ctx context.Context) error {
	l.clock.mark("claimed")
	fault.Point("containers.launch.claimed")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pinned, joined := make(chan struct{}), make(chan error, 1)
	if l.ownNetwork() {
		l.netns = l.s.NetNS.Path(l.k.id)
	}
	if err := l.meet(ctx); err != nil {
		return err
	}
	go func() {
		err := l.join(ctx, pinned)
		if err != nil {
			cancel(err)
		}
		joined <- err
	}()
	err := l.boot(ctx, pinned)
	if err != nil {
		cancel(err)
	}
	if jerr := <-joined; jerr != nil && (err == nil || errors.Is(err, context.Canceled) || errors.Is(err, jerr)) {
		err = jerr // the cause, not its echo
	}
	if err != nil {
		return err
	}
	fault.Point("containers.launch.joined")
	if err := l.hosts(); err != nil {
		return err
	}
	l.k.handOver(ctx, l.shim) // to those who came meanwhile
	if err := l.start(ctx); err != nil {
		return err
	}
	l.clock.mark("started")
	fault.Point("containers.launch.started")
	l.k.adopt(l.shim) //nolint:contextcheck // before anybody is told that it runs; it is watched for longer than this takes
	return l.commit()
}

// join makes the network namespace, says so, and has it joined to its networks.
func (l *launch) join(ctx context.Context, pinned chan<- struct{}) (err error) {
	if !l.ownNetwork() {
		close(pinned)
		return nil
	}
	if _, err := l.s.NetNS.Pin(l.k.id); err != nil {
		return err
	}
	l.clock.mark("pinned")
	fault.Point("containers.launch.pinned")
	close(pinned)
	l.endpoints, err = l.s.Networks.Join(ctx, l.op, l.c, l.netns)
	l.clock.mark("joined")
	return err
}

// boot gets as far as a process that waits to be started.
func (l *launch) boot(ctx context.Context, pinned <-chan struct{}) error {
	rootfs, err := l.s.Snapshots.Mounts(ctx, l.c.GetOrigin().GetSnapshotter(), l.k.id)
	if err != nil {
		return err
	}
	if hasVolumes(l.c) {
		if l.volumes, err = l.s.Volumes.Mount(ctx, l.op, l.c); err != nil {
			return err
		}
	}
	l.clock.mark("mounts")
	if l.runtime, err = admit.Runtime(l.c.GetSpec().GetRuntime(), l.s.runtimes()); err != nil {
		return err
	}
	if err := l.bundle(); err != nil {
		return err
	}
	if l.b, err = l.message(ctx, rootfs); err != nil {
		return err
	}
	l.clock.mark("bundled")
	fault.Point("containers.launch.bundled")
	select { // it begins with the container at once
	case <-pinned:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if l.shim, err = l.s.Shims.Spawn(ctx, l.s.state(l.k.id), l.b); err != nil {
		return err
	}
	l.clock.mark("spawned")
	fault.Point("containers.launch.spawned")
	var handed sync.WaitGroup
	defer handed.Wait()
	handed.Go(func() { l.k.handOver(ctx, l.shim) }) // it listens: who wants to join does while the container is made
	resp, err := l.shim.Create(ctx, &shimv1.CreateRequest{})
	if err != nil {
		return blame(told(ctx, err), l.c.GetCommand()[0])
	}
	l.pid, l.warnings = resp.GetPid(), resp.GetWarnings()
	l.clock.mark("created")
	return nil
}

func hasVolumes(c *containersv1.Container) bool {
	for _, v := range c.GetVolumes() {
		if v.GetKind() == containersv1.VolumeMount_KIND_VOLUME {
			return true
		}
	}
	return false
}

// hosts adds the addresses to /etc/hosts, before anything in the container can read it.
func (l *launch) hosts() error {
	if len(l.endpoints) == 0 {
		return nil
	}
	with := &containersv1.Container{Meta: l.c.GetMeta(), Spec: l.c.GetSpec(), Status: &containersv1.Status{Addresses: addresses(l.endpoints)}}
	if err := ocispec.WriteHosts(l.s.dir(l.k.id), with, l.s.Host); err != nil {
		return fmt.Errorf("/etc/hosts: %w", err)
	}
	return nil
}

func addresses(es []*networksv1.Endpoint) (out []*containersv1.Address) {
	for _, e := range es {
		for i, a := range e.GetAddresses() {
			x := &containersv1.Address{Network: e.GetNetwork(), Address: a, Mac: e.GetMac()}
			if g := e.GetGateways(); i < len(g) {
				x.Gateway = g[i]
			}
			out = append(out, x)
		}
	}
	return out
}

func ports(es []*networksv1.Endpoint) (out []*containersv1.PortMapping) {
	for _, e := range es {
		for _, p := range e.GetPorts() {
			out = append(out, &containersv1.PortMapping{
				Protocol: p.GetProtocol(), HostAddress: p.GetHostAddress(), HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(), Count: p.GetCount(),
			})
		}
	}
	return out
}

func (l *launch) start(ctx context.Context) error {
	resp, err := l.shim.Start(ctx, &shimv1.StartRequest{})
	if err != nil {
		return blame(told(ctx, err), l.c.GetCommand()[0])
	}
	if resp.GetPid() != 0 {
		l.pid = resp.GetPid()
	}
	return nil
}

// told is a shim's error about a process. What ends ctx is closer to the truth than what the shim makes of it.
func told(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return rpc.FromTTRPC(err)
}

// blame gives an error a reason if the command is to blame: runtimes say "exec COMMAND: why", and
// classes alone could as well be about a user who is not there.
func blame(err error, command string) error {
	switch {
	case err == nil || rpc.Reason(err) == ReasonNotFound || rpc.Reason(err) == ReasonNotExecutable:
		return err
	case !strings.Contains(err.Error(), "exec "+command+": "):
		return err
	case errdefs.IsNotFound(err):
		return rpc.Because(ReasonNotFound, err)
	case errdefs.IsPermissionDenied(err), errdefs.IsFailedPrecondition(err):
		return rpc.Because(ReasonNotExecutable, err)
	}
	return err
}

// exitCode is what docker's users find in a container that could not be started.
func exitCode(err error) uint32 {
	switch rpc.Reason(err) {
	case ReasonNotFound:
		return 127
	case ReasonNotExecutable:
		return 126
	}
	return 128
}

func (l *launch) commit() error {
	var after *containersv1.Container
	err := l.op.Commit(func(tx *meta.Tx) (err error) {
		after, err = l.k.put(tx, func(is *containersv1.Status) {
			if is.GetRun() == l.c.GetWantedRun() {
				is.Restarts++
			} else {
				is.Restarts = 0
			}
			is.Phase, is.Pid, is.Run, is.Runs = containersv1.Phase_PHASE_RUNNING, l.pid, l.c.GetWantedRun(), l.b.GetRun()
			is.StartedAt, is.Message, is.StartFailed = now(), "", false
			is.Ports, is.Addresses, is.Warnings = ports(l.endpoints), addresses(l.endpoints), l.warnings
		})
		return err
	})
	if err != nil {
		return err
	}
	l.k.fail(nil)
	l.k.publish(after)
	l.clock.mark("committed")
	l.s.log.Debug("a container was started", append([]any{"container", l.k.id}, l.clock.steps...)...)
	return nil
}

// failed takes back what was made and tells why.
func (l *launch) failed(ctx context.Context, err error) error {
	l.k.unwatch()
	if l.s.ctx.Err() != nil { // the daemon ends: the next one finds STARTING and begins again
		l.k.refuse(errClosing)
		return l.op.Abort(ctx)
	}
	if aerr := l.op.Abort(ctx); aerr != nil {
		l.s.log.Error("a launch that failed cannot be taken back yet", "container", l.k.id, "err", aerr)
		l.s.mess()
	}
	return l.record(context.Cause(ctx), err)
}

// record writes down that a run could not be launched. cause is why the launch was cut short, if it
// was. It fails if that cannot be written.
func (l *launch) record(cause, err error) error {
	if cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	l.s.log.Info("a container could not be started", "container", l.k.id, "err", err)
	l.k.fail(err)
	l.k.refuse(err)
	return l.k.update(func(is *containersv1.Status) {
		is.Phase = containersv1.Phase_PHASE_EXITED
		if is.GetRuns() == 0 {
			is.Phase = containersv1.Phase_PHASE_CREATED
		}
		if is.GetRun() == l.c.GetWantedRun() {
			is.Restarts++ // by the policy: it goes on trying, for the reason it had
		} else {
			is.Restarts = 0
			is.Exit = &typesv1.Exit{Code: exitCode(err), At: now(), Reason: "start-failed"}
		}
		is.Run, is.StartFailed, is.Message, is.Pid = l.c.GetWantedRun(), true, sentence.Of(err), 0
		is.Ports, is.Addresses, is.Warnings = nil, nil, nil
	})
}

package containers

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/rpc"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// shared finds the containers whose namespaces a new one asks for. Their names may be others' later.
func (s *Service) shared(spec *containersv1.Spec) ([]*containersv1.Shared, error) {
	all := ocispec.Joined(spec)
	err := s.DB.View(func(tx *meta.Tx) error {
		for _, x := range all {
			c, err := meta.Resolve(tx, s.t.containers, names, x.GetContainer())
			if err != nil {
				return fmt.Errorf("%s of container %s: %w", x.GetNamespace(), x.GetContainer(), err)
			}
			if err := joinable(c, x.GetNamespace()); err != nil {
				return err
			}
			x.Container = c.GetMeta().GetId()
			if x.GetNamespace() == ocispec.Network || x.GetNamespace() == ocispec.UTS {
				x.Hostname = ocispec.Hostname(c)
			}
		}
		return nil
	})
	return all, err
}

// joinable refuses an IPC namespace whose owner did not offer it: a process that can attach to memory of
// another container's can change what it does.
func joinable(c *containersv1.Container, namespace string) error {
	if namespace != ocispec.IPC {
		return nil
	}
	if mode, _ := ocispec.Mode(c.GetSpec(), ocispec.IPC); mode == containersv1.Namespace_MODE_UNSPECIFIED || mode == containersv1.Namespace_MODE_NONE {
		return fmt.Errorf("ipc of container %s: it does not share it; make that one with --ipc shareable: %w", label(c), errdefs.ErrInvalidArgument)
	}
	return nil
}

// owner is whose namespace one joins: another container's or, where that one has the host's, nobody's.
type owner struct {
	namespace string
	c         *containersv1.Container // nil: the host's
}

type owners []owner

// maxHops bounds how many containers may stand between one and the owner of its namespace.
const maxHops = 8

// owners follows each shared namespace to the container that it is made for.
func (s *Service) owners(c *containersv1.Container) (out owners, err error) {
	if len(c.GetShared()) == 0 {
		return nil, nil
	}
	err = s.DB.View(func(tx *meta.Tx) error {
		for _, x := range c.GetShared() {
			of, err := s.owner(tx, x, maxHops)
			if err != nil {
				return fmt.Errorf("join %s of container %s: %w", x.GetNamespace(), meta.Short(x.GetContainer()), err)
			}
			out = append(out, owner{x.GetNamespace(), of})
		}
		return nil
	})
	return out, err
}

func (s *Service) owner(tx *meta.Tx, x *containersv1.Shared, hops int) (*containersv1.Container, error) {
	if hops == 0 {
		return nil, fmt.Errorf("more than %d containers share it one from the other: name the first: %w", maxHops, errdefs.ErrFailedPrecondition)
	}
	c, err := s.t.containers.Get(tx, x.GetContainer())
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("it was removed: make this container anew: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	switch mode, _ := ocispec.Mode(c.GetSpec(), x.GetNamespace()); mode {
	case containersv1.Namespace_MODE_HOST:
		return nil, nil //nolint:nilnil // nobody's
	case containersv1.Namespace_MODE_CONTAINER:
		for _, y := range c.GetShared() {
			if y.GetNamespace() == x.GetNamespace() {
				return s.owner(tx, y, hops-1)
			}
		}
		return nil, fmt.Errorf("whose it joins in turn is not recorded: %w", errdefs.ErrDataLoss)
	default:
		return c, nil
	}
}

// claims keep what is joined from being taken down meanwhile.
func (o owners) claims() (out []*storev1.Claim) {
	seen := map[string]bool{}
	for _, x := range o {
		id := x.c.GetMeta().GetId()
		if x.c == nil || seen[id] {
			continue
		}
		seen[id] = true
		out = append(out, claim(meta.Use, kindShim, "", id))
	}
	if of := o.network(); of != nil {
		out = append(out, claim(meta.Use, kindNetNS, "", of.GetMeta().GetId()))
	}
	return out
}

// network is the container whose network namespace is joined; nil if there is none.
func (o owners) network() *containersv1.Container {
	for _, x := range o {
		if x.namespace == ocispec.Network {
			return x.c
		}
	}
	return nil
}

// meet makes sure that those whose namespaces are joined run, and notes which processes they are.
func (l *launch) meet(ctx context.Context) error {
	for _, x := range l.owners {
		if x.c == nil {
			continue
		}
		join, err := l.s.identify(ctx, x.c)
		if err != nil {
			return fmt.Errorf("join %s of container %s: %w", x.namespace, label(x.c), err)
		}
		if x.namespace == ocispec.Network { // it is pinned, and outlives the process
			l.netns = l.s.NetNS.Path(x.c.GetMeta().GetId())
			continue
		}
		join.Namespace = x.namespace
		l.joins = append(l.joins, join)
	}
	return nil
}

var errNotRunning = fmt.Errorf("it does not run: start it first: %w", errdefs.ErrFailedPrecondition)

// identify names the first process of a container that runs, for ever: by its pid and its start time.
// Its shim, which is its parent and so the only one who can free the pid, says before and after that it
// is the same run.
func (s *Service) identify(ctx context.Context, c *containersv1.Container) (*shimv1.Join, error) {
	k, err := s.keeperOf(c)
	if err != nil {
		return nil, err
	}
	shim, err := k.shimNow(k.last())
	if errdefs.IsFailedPrecondition(err) {
		return nil, errNotRunning
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, shimTime, errShimTime)
	defer cancel()
	before, err := shim.State(ctx, &shimv1.StateRequest{})
	if err != nil {
		return nil, rpc.FromTTRPC(err)
	}
	started, err := bundle.StartTime(int(before.GetPid()))
	if err != nil {
		return nil, err
	}
	after, err := shim.State(ctx, &shimv1.StateRequest{})
	if err != nil {
		return nil, rpc.FromTTRPC(err)
	}
	switch after.GetPhase() {
	case shimv1.Phase_PHASE_RUNNING, shimv1.Phase_PHASE_PAUSED:
	default:
		return nil, errNotRunning
	}
	if before.GetPid() == 0 || started == 0 || before.GetPid() != after.GetPid() || before.GetRun() != after.GetRun() {
		return nil, fmt.Errorf("it is just starting or ending: try again: %w", errdefs.ErrAborted)
	}
	return &shimv1.Join{Container: label(c), Pid: after.GetPid(), Started: started}, nil
}

// others fills in what is shared with other containers.
func (l *launch) others(o *ocispec.Options) {
	for _, x := range l.owners {
		if x.c == nil {
			o.HostOf = append(o.HostOf, x.namespace)
			continue
		}
		switch x.namespace {
		case ocispec.Network: // with its names and name servers, as Docker
			o.Etc = l.s.dir(x.c.GetMeta().GetId())
		case ocispec.IPC:
			o.Shm = l.s.state(x.c.GetMeta().GetId()).Shm()
		}
	}
	for _, j := range l.joins {
		if o.Joined == nil {
			o.Joined = map[string]string{}
		}
		o.Joined[j.GetNamespace()] = fmt.Sprintf("/proc/%d/ns/%s", j.GetPid(), j.GetNamespace())
	}
	if l.shares() {
		o.Shm = l.s.state(l.k.id).Shm()
	}
}

// shares reports whether others may join the container's IPC namespace.
func (l *launch) shares() bool {
	mode, _ := ocispec.Mode(l.c.GetSpec(), ocispec.IPC)
	return mode == containersv1.Namespace_MODE_SHAREABLE
}

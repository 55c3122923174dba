package containers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	"github.com/gantryd/gantry/services/containers/admit"
)

// changesPolicy is what a shim says in Hello that can be told another restart policy.
const changesPolicy = "policy"

// Update changes what mask names of a container's spec to what to says, at once where it runs. revision
// is the one that the caller has read, 0 if any will do.
func (s *Service) Update(ctx context.Context, ref string, to *containersv1.Spec, mask []string, revision uint64) (c *containersv1.Container, err error) {
	c, k, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, wrap(err, "update container %s", ref)
	}
	defer func() { err = wrap(err, "update container %s", label(k.last())) }()
	if _, err := changed(c, to, mask, revision); err != nil { // before anything is claimed
		return nil, err
	}
	var op *meta.Op
	short, cancel := s.waiting(ctx)
	defer cancel()
	claims := []*storev1.Claim{claim(meta.Use, kindContainer, "", k.id), claim(meta.Use, kindShim, "", k.id), claim(meta.Make, kindLimits, "", k.id)}
	if err := rpc.Retry(short, func(context.Context) error { // launches and other updates are waited for
		op, err = s.DB.Begin("container.update", claims...)
		return err
	}); err != nil {
		return nil, err
	}
	defer func() { s.untidyIf(op, err) }()
	defer op.End(ctx, &err)
	before, err := s.Get(ctx, k.id)
	if err != nil {
		return nil, err
	}
	spec, err := changed(before, to, mask, revision)
	if err != nil {
		return nil, err
	}
	fault.Point("containers.update.claimed")
	if alive(before) {
		if err := k.adapt(ctx, before, spec); err != nil {
			return nil, err
		}
	}
	fault.Point("containers.update.applied")
	return k.commitSpec(op, spec)
}

// changed is c's spec with what mask names taken from to, if c is what the caller has read, and that can be.
func changed(c *containersv1.Container, to *containersv1.Spec, mask []string, revision uint64) (*containersv1.Spec, error) {
	if len(mask) == 0 {
		return nil, invalid("nothing is named that is to be changed")
	}
	if r := c.GetMeta().GetRevision(); revision != 0 && revision != r {
		return nil, fmt.Errorf("it was changed meanwhile (revision %d was read, %d is there): read it again: %w", revision, r, errdefs.ErrAborted)
	}
	spec := proto.CloneOf(c.GetSpec())
	if err := merge(spec, to, mask); err != nil {
		return nil, err
	}
	return spec, admit.Changed(spec)
}

// commitSpec writes the spec beside whatever the keeper has written meanwhile.
func (k *keeper) commitSpec(op *meta.Op, spec *containersv1.Spec) (after *containersv1.Container, err error) {
	err = op.Commit(func(tx *meta.Tx) error {
		if after, err = k.s.t.containers.Get(tx, k.id); err != nil {
			return err
		}
		after.Spec.Resources, after.Spec.Restart = spec.GetResources(), spec.GetRestart()
		return k.s.t.containers.Put(tx, k.id, after)
	})
	if err != nil {
		return nil, err
	}
	k.publish(after)
	k.wakeUp()
	return after, nil
}

// merge copies what mask names from one spec to another: "restart", "resources", or a field of resources.
func merge(into, from *containersv1.Spec, mask []string) error {
	for _, path := range mask {
		field, sub, _ := strings.Cut(path, ".")
		switch {
		case path == "restart":
			into.Restart = proto.CloneOf(from.GetRestart())
			continue
		case path == "resources":
			into.Resources = proto.CloneOf(from.GetResources())
			continue
		}
		if into.Resources == nil {
			into.Resources = &containersv1.Resources{}
		}
		to := into.GetResources().ProtoReflect()
		fd := to.Descriptor().Fields().ByName(protoreflect.Name(sub))
		if field != "resources" || fd == nil {
			return invalid("%q cannot be changed; restart, resources and the fields of resources can", path)
		}
		source := proto.CloneOf(from.GetResources()).ProtoReflect()
		if source.IsValid() && source.Has(fd) {
			to.Set(fd, source.Get(fd))
		} else {
			to.Clear(fd)
		}
	}
	return nil
}

// adapt has a container that runs follow a changed spec. What then fails is taken back by undoLimits.
func (k *keeper) adapt(ctx context.Context, c *containersv1.Container, spec *containersv1.Spec) error {
	shim, err := k.shimNow(c)
	if err != nil {
		return err
	}
	stuck, err := k.s.follow(ctx, k.id, shim, spec, !proto.Equal(c.GetSpec().GetRestart(), spec.GetRestart()))
	if len(stuck) > 0 {
		return fmt.Errorf("%s cannot be taken away while it runs: stop it first, or give another: %w", strings.Join(stuck, ", "), errdefs.ErrFailedPrecondition)
	}
	return err
}

// follow makes a run, and its shim's next, be as spec says: config.json first, which the next run reads,
// then the run under way. It can be done again.
func (s *Service) follow(ctx context.Context, id string, shim shimv1.ShimService, spec *containersv1.Spec, policy bool) (stuck []string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, shimTime, errShimTime)
	defer cancel()
	req := &shimv1.UpdateRequest{}
	if policy {
		hello, err := shim.Hello(ctx, &shimv1.HelloRequest{})
		if err != nil {
			return nil, rpc.FromTTRPC(err)
		}
		if !slices.Contains(hello.GetCapabilities(), changesPolicy) {
			return nil, fmt.Errorf("the shim beside it is of an older release, and keeps its restart policy: stop the container first: %w", errdefs.ErrFailedPrecondition)
		}
		if req.Restart = restart(spec.GetRestart()); req.Restart == nil {
			req.Restart = &shimv1.Restart{}
		}
	}
	change, stuck, err := s.rewrite(id, spec)
	if err != nil {
		return nil, err
	}
	if change != nil {
		if req.Resources, err = json.Marshal(change); err != nil {
			return nil, err
		}
	}
	if len(req.GetResources()) == 0 && req.GetRestart() == nil {
		return stuck, nil
	}
	_, err = shim.Update(ctx, req)
	return stuck, rpc.FromTTRPC(err)
}

// rewrite puts the bounds of spec into config.json, and says how they differ from those that were there.
func (s *Service) rewrite(id string, spec *containersv1.Spec) (change *specs.LinuxResources, stuck []string, err error) {
	dir := s.state(id)
	raw, err := os.ReadFile(dir.Config())
	if err != nil {
		return nil, nil, fmt.Errorf("config.json: %w", err)
	}
	c := &specs.Spec{}
	if err := json.Unmarshal(raw, c); err != nil || c.Linux == nil || c.Linux.Resources == nil {
		return nil, nil, fmt.Errorf("config.json is damaged: start the container again: %w", errdefs.ErrDataLoss)
	}
	numbers, err := blocks(spec.GetResources())
	if err != nil {
		return nil, nil, err
	}
	is, to := c.Linux.Resources, ocispec.Resources(spec.GetResources(), numbers)
	if change, stuck = ocispec.Change(is, to); change == nil && len(stuck) == 0 {
		return nil, nil, nil
	}
	is.Memory, is.CPU, is.BlockIO, is.Pids = to.Memory, to.CPU, to.BlockIO, to.Pids
	if raw, err = json.Marshal(c); err != nil {
		return nil, nil, fmt.Errorf("config.json: %w", err)
	}
	return change, stuck, replace(dir, raw)
}

// restart is a policy in the words of the shim; nil: never.
func restart(p *containersv1.RestartPolicy) *shimv1.Restart {
	switch p.GetWhen() {
	case containersv1.RestartPolicy_WHEN_FAILED:
		return &shimv1.Restart{OnFailure: true, MaxAttempts: p.GetMaxAttempts()}
	case containersv1.RestartPolicy_WHEN_EXITED:
		return &shimv1.Restart{Always: true, MaxAttempts: p.GetMaxAttempts()}
	case containersv1.RestartPolicy_WHEN_UNSPECIFIED:
	}
	return nil
}

// replace makes config.json another, at once: a shim may be reading it.
func replace(dir bundle.Dir, raw []byte) error {
	path := dir.Config()
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	return os.Rename(path+".new", path)
}

// undoLimits has a run be again as its record says, after an update that failed, or that its daemon did
// not live to write down.
func (s *Service) undoLimits(ctx context.Context, c *storev1.Claim) error {
	id := c.GetRef().GetKey()
	is, err := s.Get(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !alive(is) {
		return nil // the next launch writes what the record says
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.times.find, errShimTime) // it may be the daemon's start that waits
	defer cancel()
	shim, done, err := s.shimOf(ctx, is)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer done()
	hello, err := shim.Hello(ctx, &shimv1.HelloRequest{})
	if err != nil {
		return rpc.FromTTRPC(err)
	}
	stuck, err := s.follow(ctx, id, shim, is.GetSpec(), slices.Contains(hello.GetCapabilities(), changesPolicy))
	if len(stuck) > 0 {
		s.log.Warn("what an update had set cannot be taken back before the next start", "container", id, "limits", strings.Join(stuck, ", "))
	}
	if errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) {
		return nil // it ended meanwhile
	}
	return err
}

// shimOf is a container's shim: its keeper's or, before there are keepers, one that is looked for and let
// go of by done.
func (s *Service) shimOf(ctx context.Context, c *containersv1.Container) (shim supervise.Shim, done func(), err error) {
	id := c.GetMeta().GetId()
	s.mu.Lock()
	k := s.keepers[id]
	s.mu.Unlock()
	if k != nil {
		shim, err = k.shimNow(c)
		return shim, func() {}, err
	}
	if shim, err = s.Shims.Find(ctx, s.state(id)); err != nil {
		return nil, nil, err
	}
	return shim, func() {
		if c, ok := shim.(io.Closer); ok {
			_ = c.Close()
		}
	}, nil
}

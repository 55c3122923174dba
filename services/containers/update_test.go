package containers

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

func (s *fakeShim) told() (all []*shimv1.UpdateRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(all, s.updates...)
}

func limits(pids, memory int64) *containersv1.Spec {
	return &containersv1.Spec{Resources: &containersv1.Resources{Pids: pids, MemoryBytes: memory}}
}

func TestUpdate(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	c, shim := w.run("web", limits(5, 64<<20))
	client := dial(t, w)
	to := limits(9, 1)
	to.Restart = &containersv1.RestartPolicy{When: containersv1.RestartPolicy_WHEN_FAILED, MaxAttempts: 3}
	got, err := client.Update(ctx, &containersv1.UpdateRequest{
		Ref: "web", Spec: to, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"resources.pids", "restart"}}, Revision: c.GetMeta().GetRevision(),
	})
	if err != nil {
		t.Fatal(err)
	}
	after := got.GetContainer()
	if r := after.GetSpec().GetResources(); r.GetPids() != 9 || r.GetMemoryBytes() != 64<<20 || after.GetSpec().GetRestart().GetMaxAttempts() != 3 {
		t.Errorf("%v", after.GetSpec())
	}
	if u := shim.told(); len(u) != 1 || string(u[0].GetResources()) != `{"pids":{"limit":9}}` || !u[0].GetRestart().GetOnFailure() || u[0].GetRestart().GetMaxAttempts() != 3 {
		t.Errorf("the shim was told %v", u)
	}
	if l := w.config(c).Linux.Resources; *l.Pids.Limit != 9 || *l.Memory.Limit != 64<<20 || len(l.Devices) == 0 {
		t.Errorf("config.json has %+v", l)
	}
	if _, err := w.Update(ctx, "web", limits(11, 0), []string{"resources.pids"}, c.GetMeta().GetRevision()); !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "read it again") {
		t.Errorf("a revision of the past: %v", err)
	}
	// What was not changed is told to nobody; what is taken away is.
	before := len(shim.told())
	if _, err := w.Update(ctx, "web", limits(9, 0), []string{"resources"}, 0); err != nil {
		t.Error(err)
	}
	if u := shim.told()[before:]; len(u) != 1 || !strings.HasPrefix(string(u[0].GetResources()), `{"memory":{"limit":9223372036854775807`) || u[0].GetRestart() != nil {
		t.Errorf("the shim was told %v", u)
	}
	w.restart()
	if c, err := w.Get(ctx, "web"); err != nil || c.GetSpec().GetResources().GetPids() != 9 {
		t.Errorf("after the daemon was started again: %v, %v", c, err)
	}
	// One that does not run gets it at the next start.
	if _, err := w.Stop(ctx, "web", "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Update(ctx, "web", limits(7, 0), []string{"resources.pids"}, 0); err != nil {
		t.Fatal(err)
	}
	if c, err = w.Start(ctx, "web"); err != nil || *w.config(c).Linux.Resources.Pids.Limit != 7 {
		t.Errorf("%v", err)
	}
	w.clean()
}

func TestUpdateRefused(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.run("web", &containersv1.Spec{Resources: &containersv1.Resources{CpusetCpus: "0", Pids: 5}})
	w.create("brief", &containersv1.Spec{RemoveOnExit: true})
	always := &containersv1.Spec{Restart: &containersv1.RestartPolicy{When: containersv1.RestartPolicy_WHEN_EXITED}}
	for _, tc := range []struct {
		name, ref string
		to        *containersv1.Spec
		mask      string
		class     func(error) bool
		want      string
	}{
		{"nothing", "web", limits(1, 0), "", errdefs.IsInvalidArgument, "nothing is named"},
		{"another field", "web", limits(1, 0), "image", errdefs.IsInvalidArgument, "cannot be changed"},
		{"no field", "web", limits(1, 0), "resources.colour", errdefs.IsInvalidArgument, "cannot be changed"},
		{"a bad value", "web", limits(0, 1), "resources.memory_bytes", errdefs.IsInvalidArgument, "at least"},
		{"what stays", "web", limits(0, 0), "resources.cpuset_cpus", errdefs.IsFailedPrecondition, "set of processors cannot be taken away"},
		{"nobody", "nobody", limits(1, 0), "resources.pids", errdefs.IsNotFound, "nobody"},
		{"rm and restart", "brief", always, "restart", errdefs.IsInvalidArgument, "take one away"},
	} {
		var mask []string
		if tc.mask != "" {
			mask = []string{tc.mask}
		}
		if _, err := w.Update(ctx, tc.ref, tc.to, mask, 0); !tc.class(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if c, err := w.Get(ctx, "web"); err != nil || c.GetSpec().GetResources().GetCpusetCpus() != "0" {
		t.Errorf("%v, %v", c, err)
	}
	w.clean()
}

// TestUpdateFails takes back what a shim could not do, all of it.
func TestUpdateFails(t *testing.T) {
	w := newWorld(t)
	c, shim := w.run("web", limits(5, 64<<20))
	shim.set(func() { shim.fail["update"] = fmt.Errorf("device or resource busy: %w", errdefs.ErrFailedPrecondition) })
	if _, err := w.Update(t.Context(), "web", limits(3, 8<<20), []string{"resources"}, 0); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "busy") {
		t.Errorf("%v", err)
	}
	if u := shim.told(); len(u) != 2 || string(u[1].GetResources()) != `{"memory":{"limit":67108864,"swap":134217728},"pids":{"limit":5}}` {
		t.Errorf("the shim was told %v", u)
	}
	if l := w.config(c).Linux.Resources; *l.Pids.Limit != 5 || *l.Memory.Limit != 64<<20 {
		t.Errorf("config.json has %+v", l)
	}
	if c, err := w.Get(t.Context(), "web"); err != nil || c.GetSpec().GetResources().GetPids() != 5 {
		t.Errorf("%v, %v", c, err)
	}
	w.clean()
}

// TestUpdatesTogether come one after the other, and record and shim agree in the end.
func TestUpdatesTogether(t *testing.T) {
	w := newWorld(t)
	w.run("web", limits(5, 0))
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			if _, err := w.Update(t.Context(), "web", limits(int64(10+n), 0), []string{"resources.pids"}, 0); err != nil && !errdefs.IsAborted(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.clean()
}

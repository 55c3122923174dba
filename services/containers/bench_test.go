package containers

import (
	"testing"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// BenchmarkRun is what the daemon itself adds to `run --rm`: drivers and shim cost nothing here.
func BenchmarkRun(b *testing.B) {
	w := newWorld(b)
	w.shims.onSpawn = func(s *fakeShim) { s.instant = true }
	for b.Loop() {
		c, err := w.Create(b.Context(), "", nil, &containersv1.Spec{Image: "a", RemoveOnExit: true})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Start(b.Context(), c.GetMeta().GetId()); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Wait(b.Context(), c.GetMeta().GetId(), containersv1.WaitRequest_UNTIL_REMOVED); err != nil {
			b.Fatal(err)
		}
	}
}

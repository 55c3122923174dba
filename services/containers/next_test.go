package containers

import (
	"testing"
	"time"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// TestNext walks every combination of what a decision depends on, checks that no
// action contradicts its circumstances, then plays the world: obeying Next, every
// container comes to rest where it is wanted, or is gone.
func TestNext(t *testing.T) {
	n := 0
	for wanted := range int32(4) {
		for phase := range int32(len(containersv1.Phase_name)) {
			for when := range int32(3) {
				for _, exit := range []*typesv1.Exit{{}, {Code: 1}, {Code: 137, Reason: reasonLost}, {Code: 255, Reason: reasonRebooted}, {Code: 137, Reason: "oom"}} {
					for _, due := range []uint64{0, 1} {
						for _, rm := range []bool{false, true} {
							for _, failed := range []bool{false, true} {
								n++
								c := &containersv1.Container{
									Spec:      &containersv1.Spec{RemoveOnExit: rm, Restart: &containersv1.RestartPolicy{When: containersv1.RestartPolicy_When(when), MaxAttempts: 3}},
									Wanted:    containersv1.Wanted(wanted),
									WantedRun: 1 + due,
									Status:    &containersv1.Status{Phase: containersv1.Phase(phase), Run: 1, Exit: exit, StartFailed: failed},
								}
								contradictions(t, c)
								play(t, c)
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d combinations", n)
}

// contradictions are what no circumstances excuse.
func contradictions(t *testing.T, c *containersv1.Container) {
	t.Helper()
	do, wait := Next(c)
	running := c.Wanted == containersv1.Wanted_WANTED_RUNNING
	switch {
	case do == Launch && !running:
		t.Errorf("%v: launched though nobody wants it", c)
	case do == Terminate && running && c.Status.Phase != containersv1.Phase_PHASE_STOPPING:
		t.Errorf("%v: terminated though it is wanted", c)
	case do == Forget && alive(c):
		t.Errorf("%v: forgotten alive", c)
	case (do == Terminate || do == Watch || do == Find) && !alive(c):
		t.Errorf("%v: %v, though nothing lives", c, do)
	case do == Rest && alive(c):
		t.Errorf("%v: rests alive", c)
	case wait < 0 || wait > time.Minute:
		t.Errorf("%v: waits %v", c, wait)
	case wait > 0 && do != Find && c.Status.Run < c.WantedRun:
		t.Errorf("%v: a user waits %v for nothing", c, wait)
	}
}

func play(t *testing.T, c *containersv1.Container) {
	t.Helper()
	s := c.Status
	for range 20 {
		switch do, _ := Next(c); do {
		case Launch:
			if s.Run == c.WantedRun {
				s.Restarts++
			}
			s.Run, s.Phase, s.StartFailed = c.WantedRun, containersv1.Phase_PHASE_RUNNING, false
		case Watch:
			s.Phase, s.Exit = containersv1.Phase_PHASE_EXITED, &typesv1.Exit{} // every process ends
		case Terminate:
			s.Phase, s.Exit = containersv1.Phase_PHASE_EXITED, &typesv1.Exit{Code: 143} // and sooner if it is told to
		case Find:
			s.Phase = containersv1.Phase_PHASE_RUNNING
		case Forget:
			if c.Wanted != containersv1.Wanted_WANTED_REMOVED && !c.Spec.RemoveOnExit {
				t.Errorf("%v: forgotten", c)
			}
			return
		case Rest:
			if alive(c) {
				t.Errorf("%v: rests alive", c)
			}
			if c.Wanted == containersv1.Wanted_WANTED_RUNNING && s.Run < c.WantedRun {
				t.Errorf("%v: rests though a run is due", c)
			}
			return
		}
	}
	t.Errorf("%v: never rests", c)
}

func TestBackoff(t *testing.T) {
	last := time.Duration(0)
	for n := range uint32(100) {
		d := backoff(n)
		if d < last || d > time.Minute {
			t.Errorf("after %d restarts: %v, before it was %v", n, d, last)
		}
		last = d
	}
	if last != time.Minute {
		t.Errorf("ends at %v", last)
	}
}

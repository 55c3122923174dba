package containers

import (
	"testing"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// TestNext walks every combination of what a decision depends on, checks that no
// action contradicts its circumstances, then plays the world: obeying Next, every
// container comes to rest where it is wanted, or is gone.
func TestNext(t *testing.T) {
	n := 0
	for wanted := range int32(4) {
		for phase := range int32(8) {
			for when := range int32(3) {
				for _, code := range []uint32{0, 1} {
					for _, due := range []uint64{0, 1} {
						for _, rm := range []bool{false, true} {
							n++
							c := &containersv1.Container{
								Spec:      &containersv1.Spec{RemoveOnExit: rm, Restart: &containersv1.RestartPolicy{When: containersv1.RestartPolicy_When(when), MaxAttempts: 3}},
								Wanted:    containersv1.Wanted(wanted),
								WantedRun: 1 + due,
								Status:    &containersv1.Status{Phase: containersv1.Phase(phase), Run: 1, Exit: &typesv1.Exit{Code: code}},
							}
							do, _ := Next(c)
							if do == Launch && c.Wanted != containersv1.Wanted_WANTED_RUNNING {
								t.Errorf("%v: launch", c)
							}
							if do == Terminate && c.Wanted == containersv1.Wanted_WANTED_RUNNING {
								t.Errorf("%v: terminate", c)
							}
							play(t, c)
						}
					}
				}
			}
		}
	}
	t.Logf("%d combinations", n)
}

func play(t *testing.T, c *containersv1.Container) {
	s := c.Status
	for range 20 {
		switch do, _ := Next(c); do {
		case Launch:
			if s.Run == c.WantedRun {
				s.Restarts++
			}
			s.Run, s.Phase = c.WantedRun, containersv1.Phase_PHASE_RUNNING
		case Watch:
			s.Phase = containersv1.Phase_PHASE_EXITED // every process ends
		case Terminate:
			s.Phase = containersv1.Phase_PHASE_STOPPING
		case Find:
			s.Phase = containersv1.Phase_PHASE_RUNNING
		case Forget:
			if c.Wanted != containersv1.Wanted_WANTED_REMOVED && !c.Spec.RemoveOnExit {
				t.Errorf("%v: forgotten", c)
			}
			return
		case Rest:
			if alive := s.Phase >= containersv1.Phase_PHASE_STARTING && s.Phase <= containersv1.Phase_PHASE_STOPPING; alive {
				t.Errorf("%v: rests alive", c)
			}
			return
		}
	}
	t.Errorf("%v: never rests", c)
}

package containers

import (
	"time"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// Action is the one thing to do next.
type Action int

// The actions.
const (
	Rest      Action = iota // nothing to do until something changes
	Launch                  // spawn a shim and start the process
	Watch                   // wait for the process to exit
	Terminate               // signal, be patient, then kill
	Find                    // look for the shim again
	Forget                  // drop what the container holds, and the record
)

// Why a run ended that its shim did not see end.
const (
	reasonLost     = "shim-lost"
	reasonRebooted = "host-rebooted"
)

// Next decides what a keeper does, and how long it waits first. It is pure: the
// whole behaviour of a container is this function and the table that tests it.
//
// Runs that end while the shim lives are its to repeat, or not: it goes on while no daemon is
// there. The keeper repeats only what ended together with its shim.
func Next(c *containersv1.Container) (Action, time.Duration) {
	is, due := c.GetStatus(), c.GetStatus().GetRun() < c.GetWantedRun()
	wanted := c.GetWanted() == containersv1.Wanted_WANTED_RUNNING
	switch is.GetPhase() {
	case containersv1.Phase_PHASE_UNREACHABLE:
		if wanted {
			return Find, time.Second
		}
		return Terminate, 0
	case containersv1.Phase_PHASE_STARTING: // a launch that ended with its daemon
		if wanted {
			return Launch, 0
		}
		return Terminate, 0
	case containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_PAUSED, containersv1.Phase_PHASE_RESTARTING:
		if wanted {
			return Watch, 0
		}
		return Terminate, 0
	case containersv1.Phase_PHASE_STOPPING: // begun is begun: a signal cannot be taken back
		return Terminate, 0
	case containersv1.Phase_PHASE_UNSPECIFIED, containersv1.Phase_PHASE_CREATED, containersv1.Phase_PHASE_EXITED:
	}
	// created or exited: nothing lives
	switch {
	case c.GetWanted() == containersv1.Wanted_WANTED_REMOVED:
		return Forget, 0
	case wanted && due:
		return Launch, 0
	case wanted && again(c.GetSpec().GetRestart(), is):
		return Launch, backoff(is.GetRestarts())
	case c.GetSpec().GetRemoveOnExit() && (is.GetPhase() == containersv1.Phase_PHASE_EXITED || is.GetStartFailed()):
		return Forget, 0
	}
	return Rest, 0
}

// again reports whether the restart policy starts a container once more that lost its shim.
func again(p *containersv1.RestartPolicy, is *containersv1.Status) bool {
	if is.GetPhase() != containersv1.Phase_PHASE_EXITED {
		return false
	}
	if r := is.GetExit().GetReason(); r != reasonLost && r != reasonRebooted {
		return false
	}
	if p.GetMaxAttempts() > 0 && is.GetRestarts() >= p.GetMaxAttempts() {
		return false
	}
	switch p.GetWhen() {
	case containersv1.RestartPolicy_WHEN_EXITED:
		return true
	case containersv1.RestartPolicy_WHEN_FAILED:
		return is.GetExit().GetCode() != 0
	case containersv1.RestartPolicy_WHEN_UNSPECIFIED:
	}
	return false
}

// backoff doubles from 100 ms to a minute.
func backoff(restarts uint32) time.Duration {
	return min(100*time.Millisecond<<min(restarts, 10), time.Minute)
}

// alive reports whether a container has, or may have, a process.
func alive(c *containersv1.Container) bool {
	switch c.GetStatus().GetPhase() {
	case containersv1.Phase_PHASE_STARTING, containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_PAUSED,
		containersv1.Phase_PHASE_STOPPING, containersv1.Phase_PHASE_UNREACHABLE, containersv1.Phase_PHASE_RESTARTING:
		return true
	case containersv1.Phase_PHASE_UNSPECIFIED, containersv1.Phase_PHASE_CREATED, containersv1.Phase_PHASE_EXITED:
	}
	return false
}

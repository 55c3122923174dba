package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/cgroup"
)

// ReasonLost is why a run ended whose shim could not say how.
const ReasonLost = "shim-lost"

// Bury ends whatever is left of the container of dir: the shim if it lives, whether or not it
// answers; every process in the cgroup; the cgroup; last, the state directory. It returns how the
// last run ended: as recorded, or else as 137, "shim-lost", which it records; nothing if no run is
// known of. Buried again, it succeeds.
func (s *Supervisor) Bury(ctx context.Context, dir bundle.Dir) (_ bundle.Exit, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bury container %s: %w", dir.ID(), err)
		}
	}()
	run, err := s.endShim(ctx, dir) // first: it would start the container again
	if err != nil {
		return bundle.Exit{}, err
	}
	if err := s.endProcesses(ctx, dir); err != nil {
		return bundle.Exit{}, err
	}
	x, err := lastExit(dir, run)
	if err != nil {
		return bundle.Exit{}, err
	}
	return x, DropState(dir)
}

// endProcesses kills what is in the container's cgroup, and removes it: the one under the daemon's own,
// and the one that config.json names, which may be under another.
func (s *Supervisor) endProcesses(ctx context.Context, dir bundle.Dir) error {
	places := []string{"/" + s.o.Instance + "/" + dir.ID()}
	if p := configured(dir); path.IsAbs(p) && path.Base(p) == dir.ID() && path.Clean(p) != places[0] {
		places = append(places, path.Clean(p))
	}
	for _, p := range places {
		g, err := cgroup.Open(p)
		if err != nil {
			return err
		}
		if err := g.Kill(ctx); err != nil {
			return err
		}
		if err := g.Remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// configured is the cgroup that config.json names; "" if there is none to read.
func configured(dir bundle.Dir) string {
	raw, err := os.ReadFile(dir.Config())
	if err != nil {
		return ""
	}
	var c struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if json.Unmarshal(raw, &c) != nil {
		return ""
	}
	return c.Linux.CgroupsPath
}

// endShim ends the shim, if there is one, and returns the run that it began last; 0: none.
func (s *Supervisor) endShim(ctx context.Context, dir bundle.Dir) (run uint64, err error) {
	is, fd, err := identify(dir)
	if errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		return is.Run, nil // nobody who could be told from a stranger
	}
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd) //nolint:errcheck // of no use any more
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("kill the shim: %w", err)
	}
	for !ended(fd) {
		if ctx.Err() != nil {
			return 0, fmt.Errorf("the shim does not die: %w", context.Cause(ctx))
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		if _, err := unix.Poll(p, 50); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("pidfd: %w", err)
		}
	}
	if is, err := dir.Shim(); err == nil {
		return is.Run, nil // it may have begun another while we looked
	}
	return is.Run, nil
}

// lastExit is how the last run ended, which is run if that is not 0.
func lastExit(dir bundle.Dir, run uint64) (bundle.Exit, error) {
	x, ok, err := dir.LastExit()
	if err != nil || run == 0 || ok && x.Run >= run {
		return x, err
	}
	x = bundle.Exit{Code: 128 + uint32(unix.SIGKILL), At: time.Now(), Reason: ReasonLost, Run: run, Signal: uint32(unix.SIGKILL)}
	e, err := dir.OpenExits()
	if errors.Is(err, fs.ErrNotExist) { // the container is removed
		return x, nil
	}
	if err != nil {
		return x, err
	}
	return x, errors.Join(e.Append(x), e.Close())
}

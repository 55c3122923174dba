package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/bundle"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// procNames are the names of namespaces in /proc/<pid>/ns where config.json has others (namespaces(7)).
var procNames = map[string]string{"network": "net", "mount": "mnt"}

// openJoins opens the namespaces of other containers that a run joins, and has spec name them by
// descriptors of this process, which are what they are whatever becomes of a pid. The caller closes
// them once the container is made.
func (s *shim) openJoins(spec *specs.Spec) (open []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(open)
			open = nil
		}
	}()
	if n := s.boot.GetNetns(); n != "" {
		if _, err := os.Lstat(n); errors.Is(err, os.ErrNotExist) { // its own stays as long as the shim does
			return nil, fmt.Errorf("join network namespace %s: its container has ended: start this container again: %w", n, errdefs.ErrFailedPrecondition)
		}
	}
	for _, j := range s.boot.GetJoins() {
		f, err := openJoin(j)
		if err != nil {
			return open, fmt.Errorf("join %s of container %s: %w", j.GetNamespace(), j.GetContainer(), err)
		}
		open = append(open, f)
		found := false
		for i, n := range spec.Linux.Namespaces {
			if string(n.Type) == j.GetNamespace() {
				spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
				found = true
			}
		}
		if !found {
			return open, fmt.Errorf("join %s of container %s: config.json does not join any: %w", j.GetNamespace(), j.GetContainer(), errdefs.ErrInvalidArgument)
		}
	}
	return open, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// openJoin opens the namespace of one process, and of no other that has its pid by now: while a pidfd says
// that the process that began then is not reaped, the pid is its own.
func openJoin(j *shimv1.Join) (*os.File, error) {
	pid := int(j.GetPid())
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, errAnother
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(pidfd) //nolint:errcheck // it was only asked
	started, err := bundle.StartTime(pid)
	if err != nil {
		return nil, err
	}
	if started != j.GetStarted() {
		return nil, errAnother
	}
	name := j.GetNamespace()
	if n, ok := procNames[name]; ok {
		name = n
	}
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
	if err == nil {
		if err = unix.PidfdSendSignal(pidfd, 0, nil, 0); err == nil {
			return f, nil
		}
		err = errors.Join(err, f.Close())
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		return nil, errAnother
	}
	return nil, err
}

var errAnother = fmt.Errorf("its process has ended, or was started again: start this container again: %w", errdefs.ErrFailedPrecondition)

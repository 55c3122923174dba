// Command gantry-shim runs one container: it holds its pipes, its log, its restarts and its exit,
// and outlives the daemon that started it.
//
//	main.go boot.go   from exec to Booted
//	serve.go          control: ttrpc on shim.sock; lean.go its messages, without reflection
//	attach.go         bytes: frames on io.sock
//	container.go      init's life: create, start, kill, pause, remove; config.go what it is made from
//	end.go            the end of a run, recorded and told; restart.go whether another follows, and it
//	join.go           namespaces of other containers
//	exec.go           other processes beside it
//	process.go        one process, whichever
//	stdio.go ring.go  what it reads and writes; order.go, in which order
//	reap.go           orphans
//	log.go            the shim's own words
//
// It is told everything by one message on stdin, which it may be given long after it was started, and prints
// one line of JSON. There are no flags, and no environment but what Go's runtime is told.
package main

import (
	"errors"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	"github.com/gantryd/gantry/shim/runtime/native"
)

const (
	// startLimit bounds what starting a container may allocate, in bytes, before it is collected.
	startLimit = 24 << 20
	// startTime is how long a start may take that is not worth collecting in.
	startTime = 300 * time.Millisecond
	// garbage is when it is collected later: when half as much as is in use is not, and 2 MB at least.
	garbage = 50
)

func main() {
	// Garbage is not collected while the container is started: there is little (0.5 MB), and what
	// collecting takes for itself, 1 MB and half a millisecond, most shims never need.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(startLimit)
	if err := run(); err != nil {
		if aerr := answer(&shimv1.Booted{Protocol: protocol, Error: err.Error()}); aerr != nil {
			newLog().Error("the shim did not start, and nobody heard why", "err", err)
		}
		os.Exit(1)
	}
}

// run is the shim's life. An error means that it did not begin.
func run() error {
	if err := native.Seal(); err != nil {
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	prepare()
	b, err := readBoot(os.Stdin)
	if errors.Is(err, errUnused) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := moveIn(b.GetStateDir()); err != nil {
		return err
	}
	reap := newReaper()
	rt, err := newRuntime(b, reap)
	if err != nil {
		return err
	}
	s := newShim(b, newNonce(), rt, reap, newLog())
	if b.GetCreate() {
		s.begin()
	}
	l, err := listen()
	if err != nil {
		return err
	}
	v, err := newServer(s)
	if err != nil {
		return err
	}
	if err := s.introduce(0); err != nil {
		return err
	}
	go s.deafen()
	go s.reap.run()
	go s.serveIO(ours{l.io, s.log})
	go func() {
		if err := v.serve(ours{l.control, s.log}); err != nil {
			s.log.Error("control is not served any more", "err", err)
		}
	}()
	if err := answer(&shimv1.Booted{Protocol: protocol, Nonce: s.nonce, Pid: uint32(os.Getpid())}); err != nil { //nolint:gosec // a pid
		return err
	}
	if err := s.exits.open(); err != nil { // early: at the end a disk may be full
		s.log.Error("exits cannot be recorded", "err", err)
	}
	<-s.end
	s.close()
	_ = v.t.Close()
	return nil
}

// prepare does what needs no container and would otherwise be done for the first time while one is waited for:
// looking at what this process may do, and reading what its messages consist of.
func prepare() {
	_, _ = native.New() // if it cannot be made, newRuntime says why
	_, _ = proto.Size(&ttrpc.Request{}), proto.Size(&ttrpc.Response{})
}

// close lets go of the log. Nothing runs any more.
func (s *shim) close() {
	s.init.shut()
	if s.out != nil {
		if err := s.out.Close(); err != nil {
			s.log.Error("the log was not closed", "err", err)
		}
	}
}

// shut ends the pumps: nothing is written to the log after that.
func (p *process) shut() {
	p.out.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pu := range p.pumps {
		pu.close()
	}
}

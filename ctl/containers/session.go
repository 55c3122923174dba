package containers

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/ctl/cli"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// errDetached ends a session whose user typed the detach keys.
var errDetached = errors.New("detached")

// session joins this process's streams to a process in a container.
type session struct {
	env        *cli.Env
	tty        bool // the process has a terminal
	stdin      bool // pass on what is typed
	detachKeys []byte
	signals    bool // pass on signals sent to this process; else they end this program alone
	// kill sends a signal to the process; nil: by the stream, where it waits behind what was typed.
	kill func(signal string) error

	mu   sync.Mutex
	send func(*typesv1.ProcessInput) error
	recv func() (*typesv1.ProcessOutput, error)
}

// put sends one input; a stream takes one at a time.
func (s *session) put(in *typesv1.ProcessInput) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.send(in)
}

// run copies until the process exits, the user detaches, or the stream breaks.
func (s *session) run(ctx context.Context) (*typesv1.Exit, error) {
	ended, end := context.WithCancelCause(ctx)
	defer end(nil)
	if s.tty {
		stop, err := s.terminal()
		if err != nil {
			return nil, err
		}
		defer stop()
	}
	if s.signals {
		defer s.forwardSignals()()
	} else {
		defer leaveOnSignal(end)()
	}
	if s.stdin {
		// Not waited for: a read of a terminal cannot be taken back, and the process ends soon.
		go s.typed(end)
	}
	type result struct {
		exit *typesv1.Exit
		err  error
	}
	out := make(chan result, 1)
	go func() {
		exit, err := s.output()
		out <- result{exit, err}
	}()
	select {
	case r := <-out:
		return r.exit, r.err
	case <-ended.Done():
		return nil, context.Cause(ended)
	}
}

// terminal makes the local terminal a window on the remote one.
func (s *session) terminal() (stop func(), err error) {
	stop = func() {}
	if fd, ok := s.env.InTerminal(); ok && s.stdin {
		restore, err := cli.Raw(fd)
		if err != nil {
			return nil, err
		}
		stop = restore
	}
	if fd, ok := s.env.OutTerminal(); ok {
		restore := stop
		resize := func(size *typesv1.TerminalSize) {
			_ = s.put(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_Resize{Resize: size}})
		}
		unwatch := cli.Resizes(fd, resize)
		stop = func() { unwatch(); restore() }
	}
	return stop, nil
}

// typed passes on stdin until its end.
func (s *session) typed(end context.CancelCauseFunc) {
	keys := cli.NewDetacher(nil)
	if s.tty {
		keys = cli.NewDetacher(s.detachKeys)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := s.env.In.Read(buf)
		data, detach := keys.Feed(buf[:n])
		if len(data) > 0 {
			if s.put(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_Stdin{Stdin: data}}) != nil {
				return // the output side has the reason
			}
		}
		if detach {
			end(errDetached)
			return
		}
		if err != nil {
			if held := keys.Rest(); len(held) > 0 {
				_ = s.put(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_Stdin{Stdin: held}})
			}
			_ = s.put(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_StdinEof{StdinEof: true}})
			return
		}
	}
}

// output writes what comes until the exit.
func (s *session) output() (*typesv1.Exit, error) {
	for {
		m, err := s.recv()
		if errors.Is(err, io.EOF) {
			return nil, nil //nolint:nilnil // the stream ended without an exit: a detached start
		}
		if err != nil {
			return nil, err
		}
		switch o := m.GetOutput().(type) {
		case *typesv1.ProcessOutput_Stdout:
			_, err = s.env.Out.Write(o.Stdout)
		case *typesv1.ProcessOutput_Stderr:
			_, err = s.env.Err.Write(o.Stderr)
		case *typesv1.ProcessOutput_LostBytes:
			_, err = io.WriteString(s.env.Err, "\ngantry: this terminal fell behind and output was skipped; \"gantry logs\" has it\n")
		case *typesv1.ProcessOutput_Exit:
			return o.Exit, nil
		}
		if err != nil && !errors.Is(err, unix.EPIPE) {
			return nil, err
		}
	}
}

// forwarded are the signals that a user means for the process.
var forwarded = []os.Signal{
	unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGALRM,
}

func (s *session) forwardSignals() (stop func()) {
	send := s.kill
	if send == nil {
		send = func(name string) error {
			return s.put(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_Signal{Signal: name}})
		}
	}
	return onSignal(forwarded, func(n unix.Signal) {
		_ = send(unix.SignalName(n)) // the process may have ended meanwhile; the output side tells
	})
}

// leaving are the signals that end this program where they are not passed on.
var leaving = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT}

// leaveOnSignal ends the session, and lets the process go on. By itself the program would end as well, and
// leave the terminal raw.
func leaveOnSignal(end context.CancelCauseFunc) (stop func()) {
	return onSignal(leaving, func(n unix.Signal) { end(cli.Exit(128 + int(n))) })
}

// onSignal calls do for each signal that comes, until it is stopped.
func onSignal(signals []os.Signal, do func(unix.Signal)) (stop func()) {
	ch, done, ended := make(chan os.Signal, 16), make(chan struct{}), make(chan struct{})
	signal.Notify(ch, signals...)
	go func() {
		defer close(ended)
		for {
			select {
			case sig := <-ch:
				if n, ok := sig.(unix.Signal); ok {
					do(n)
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
		<-ended
	}
}

package containers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

type logsOptions struct {
	follow, timestamps bool
	tail, since, until string
}

func newLogsCommand(env *cli.Env) *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use: "logs [flags] CONTAINER", Short: "Show what a container has written",
		Example: "  gantry logs -f --tail 100 web\n  gantry logs --since 10m web",
		Args:    cli.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runLogs(cmd.Context(), env, o, args[0]) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.follow, "follow", "f", false, "go on with what it writes from now on")
	fs.BoolVarP(&o.timestamps, "timestamps", "t", false, "show when each line was written")
	fs.StringVarP(&o.tail, "tail", "n", "all", "how many of the last lines")
	fs.StringVar(&o.since, "since", "", "only what was written after a time (2026-01-02T15:04:05) or a while ago (10m)")
	fs.StringVar(&o.until, "until", "", "only what was written before")
	return cmd
}

func runLogs(ctx context.Context, env *cli.Env, o logsOptions, ref string) error {
	req := &containersv1.LogsRequest{Ref: ref, Follow: o.follow, Tail: -1}
	if o.tail != "all" && o.tail != "" {
		n, err := strconv.ParseInt(o.tail, 10, 64)
		if err != nil {
			return cli.Usagef("--tail %q: write a number of lines, or all", o.tail)
		}
		req.Tail = n
	}
	var err error
	if req.Since, err = cli.Moment(env, "--since", o.since); err != nil {
		return err
	}
	if req.Until, err = cli.Moment(env, "--until", o.until); err != nil {
		return err
	}
	stream, err := env.Containers().Logs(ctx, req)
	if err != nil {
		return err
	}
	w := newLogWriter(env, o.timestamps)
	err = cli.Stream(stream.Recv, func(m *containersv1.LogsResponse) error {
		for _, r := range m.GetRecords() {
			if err := w.write(r); err != nil {
				return err
			}
		}
		return w.flush()
	})
	if cli.Cut(err) {
		return fmt.Errorf("read the log of container %s: the daemon went away meanwhile; the container goes on, and its log with it: %w", ref, err)
	}
	return err
}

// logWriter writes records where they belong, in their order also where stdout and stderr are one
// terminal.
type logWriter struct {
	out, err   *bufio.Writer
	last       *bufio.Writer // what was written to last
	timestamps bool
	partial    map[*bufio.Writer]bool // it is in the middle of a line
}

func newLogWriter(env *cli.Env, timestamps bool) *logWriter {
	w := &logWriter{
		out: bufio.NewWriterSize(env.Out, 64<<10), err: bufio.NewWriterSize(env.Err, 64<<10),
		timestamps: timestamps, partial: map[*bufio.Writer]bool{},
	}
	w.last = w.out
	return w
}

func (w *logWriter) flush() error { return errors.Join(w.out.Flush(), w.err.Flush()) }

// stampLayout has all nine digits: docker's users sort and cut these.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

func (w *logWriter) write(r *containersv1.LogRecord) error {
	to := w.out
	if r.GetStderr() || r.GetNotice() != "" {
		to = w.err
	}
	if to != w.last {
		if err := w.last.Flush(); err != nil {
			return err
		}
		w.last = to
	}
	if r.GetNotice() != "" {
		_, err := fmt.Fprintln(to, "gantry: "+r.GetNotice())
		return err
	}
	if w.timestamps && !w.partial[to] {
		if _, err := to.WriteString(r.GetAt().AsTime().Format(stampLayout) + " "); err != nil {
			return err
		}
	}
	w.partial[to] = r.GetPartial()
	_, err := to.Write(r.GetData())
	return err
}

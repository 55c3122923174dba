package containers

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

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
	if req.Since, err = moment(env, "--since", o.since); err != nil {
		return err
	}
	if req.Until, err = moment(env, "--until", o.until); err != nil {
		return err
	}
	stream, err := env.Containers().Logs(ctx, req)
	if err != nil {
		return err
	}
	out, errOut := bufio.NewWriterSize(env.Out, 64<<10), bufio.NewWriterSize(env.Err, 4<<10)
	err = cli.Stream(stream.Recv, func(m *containersv1.LogsResponse) error {
		for _, r := range m.GetRecords() {
			if err := writeRecord(out, errOut, r, o.timestamps); err != nil {
				return err
			}
		}
		if err := out.Flush(); err != nil {
			return err
		}
		return errOut.Flush()
	})
	return err
}

func writeRecord(out, errOut *bufio.Writer, r *containersv1.LogRecord, timestamps bool) error {
	if r.GetNotice() != "" {
		if err := out.Flush(); err != nil { // the notice belongs behind the lines before it
			return err
		}
		_, err := fmt.Fprintln(errOut, "gantry: "+r.GetNotice())
		return err
	}
	var w io.Writer = out
	if r.GetStderr() {
		w = errOut
	}
	if timestamps {
		if _, err := fmt.Fprint(w, r.GetAt().AsTime().Format("2006-01-02T15:04:05.000000000Z07:00")+" "); err != nil {
			return err
		}
	}
	_, err := w.Write(r.GetData())
	return err
}

var momentLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02"}

// moment parses a time as docker does: a duration ago, seconds since 1970, or a date.
func moment(env *cli.Env, flag, v string) (*timestamppb.Timestamp, error) {
	if v == "" {
		return nil, nil //nolint:nilnil // no bound
	}
	if d, err := time.ParseDuration(v); err == nil {
		return timestamppb.New(env.Now().Add(-d)), nil
	}
	if s, err := strconv.ParseFloat(v, 64); err == nil {
		return timestamppb.New(time.Unix(0, int64(s*1e9))), nil
	}
	for _, l := range momentLayouts {
		if t, err := time.ParseInLocation(l, v, time.Local); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, cli.Usagef("%s %q: no time; write 10m, 2026-01-02T15:04:05 or seconds since 1970", flag, v)
}

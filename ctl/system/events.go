package system

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
)

type eventsOptions struct {
	after               uint64
	fromStart, noFollow bool
	format              string
	filters             []string
	since, until        string
}

// NewEventsCommand is "system events", which stands at the top level as well.
func NewEventsCommand(env *cli.Env) *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use: "events [flags]", Short: "Follow what changes, from now or from a revision",
		Example: "  gantry events --filter type=container --filter phase=exited\n  gantry events --since 10m --until 5m\n  gantry events --after 1042 --no-follow",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.fromStart = o.fromStart || cmd.Flags().Changed("after") && o.after == 0
			return runEvents(cmd.Context(), env, o)
		},
	}
	fs := cmd.Flags()
	fs.Uint64Var(&o.after, "after", 0, "begin behind this revision, 0 for the oldest that is kept (\"gantry system info\" shows the present one)")
	fs.BoolVar(&o.fromStart, "from-start", false, "begin with the oldest that is kept")
	fs.BoolVar(&o.noFollow, "no-follow", false, "end at the present")
	fs.StringVar(&o.since, "since", "", "begin with what happened after a time (2026-01-02T15:04:05) or a while ago (10m)")
	fs.StringVar(&o.until, "until", "", "end with what happened before a time, which may come yet")
	fs.StringVar(&o.format, "format", "", "json, or a template: {{.Revision}} {{.Time}} {{.Kind}} {{.ID}} {{.Verb}} {{.Facts}}")
	fs.StringArrayVarP(&o.filters, "filter", "f", nil, `only those that match: type=, event=, id=, label=, container=, image=, network=, volume=,
or a fact: name=, phase=, wanted=, code=, reason=, endpoint=, backend=`)
	return cmd
}

func runEvents(ctx context.Context, env *cli.Env, o eventsOptions) error {
	filters, err := cli.Filters(o.filters)
	if err != nil {
		return err
	}
	req := &eventsv1.WatchRequest{After: o.after, Filters: filters, FromStart: o.fromStart, NoFollow: o.noFollow}
	if req.Since, err = cli.Moment(env, "--since", o.since); err != nil {
		return err
	}
	if req.Until, err = cli.Moment(env, "--until", o.until); err != nil {
		return err
	}
	stream, err := env.Events().Watch(ctx, req)
	if err != nil {
		return err
	}
	var last uint64
	err = cli.Stream(stream.Recv, func(m *eventsv1.WatchResponse) error {
		last = m.GetEvent().GetRevision()
		return writeEvent(env, o.format, m.GetEvent())
	})
	if cli.Cut(err) && last > 0 {
		return fmt.Errorf("follow events: the daemon went away meanwhile; containers go on: go on with --after %d when it is back: %w", last, err)
	}
	return err
}

func writeEvent(env *cli.Env, format string, e *eventsv1.Event) error {
	var facts []string
	for k, v := range e.GetFacts() {
		facts = append(facts, k+"="+v)
	}
	sort.Strings(facts)
	at := e.GetAt().AsTime().Local().Format(time.RFC3339Nano)
	if format == "" {
		line := fmt.Sprintf("%d %s %s %s %s", e.GetRevision(), at, e.GetKind(), e.GetVerb(), e.GetId())
		if len(facts) > 0 {
			line += " (" + strings.Join(facts, ", ") + ")"
		}
		_, err := fmt.Fprintln(env.Out, line)
		return err
	}
	return (&cli.Table{Rows: []map[string]string{{
		"Revision": fmt.Sprint(e.GetRevision()), "Time": at, "Kind": e.GetKind(), "ID": e.GetId(), "Verb": e.GetVerb(), "Facts": strings.Join(facts, ","),
	}}}).Write(env.Out, format)
}

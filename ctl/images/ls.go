package images

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

type listOptions struct {
	quiet, noTrunc, digests bool
	format                  string
	filters                 []string
}

func newListCommand(env *cli.Env) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use: "ls [flags] [REPOSITORY[:TAG]]", Short: "List images", Aliases: []string{"list"},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) <= 1 {
				return nil
			}
			return cli.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.filters = append(o.filters, "reference="+args[0])
			}
			return runList(cmd.Context(), env, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "only ids")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten ids")
	fs.BoolVar(&o.digests, "digests", false, "show digests as well")
	fs.BoolP("all", "a", false, "as docker has it; gantry has no images in between")
	fs.StringVar(&o.format, "format", "", "table, json, or a template: {{.Repository}} {{.Tag}} {{.ID}} {{.Digest}} {{.CreatedSince}} {{.CreatedAt}} {{.Size}}")
	fs.StringArrayVarP(&o.filters, "filter", "f", nil, "only those that match: reference=, label=, dangling=")
	return cmd
}

func runList(ctx context.Context, env *cli.Env, o listOptions) error {
	filters, err := cli.Filters(o.filters)
	if err != nil {
		return err
	}
	stream, err := env.Images().List(ctx, &imagesv1.ListRequest{Filters: filters})
	if err != nil {
		return err
	}
	t := &cli.Table{Columns: []cli.Column{{Title: "REPOSITORY", Field: "Repository"}, {Title: "TAG", Field: "Tag"}}}
	if o.digests {
		t.Columns = append(t.Columns, cli.Column{Title: "DIGEST", Field: "Digest"})
	}
	t.Columns = append(t.Columns, cli.Column{Title: "IMAGE ID", Field: "ID"}, cli.Column{Title: "CREATED", Field: "CreatedSince"}, cli.Column{Title: "SIZE", Field: "Size"})
	var images []*imagesv1.Image
	if err := cli.Stream(stream.Recv, func(m *imagesv1.ListResponse) error {
		images = append(images, m.GetImage())
		return nil
	}); err != nil {
		return err
	}
	sort.SliceStable(images, func(i, j int) bool { return images[i].GetMeta().GetName() < images[j].GetMeta().GetName() })
	seen := map[string]bool{}
	for _, i := range images {
		row := listRow(env, i, o.noTrunc)
		if !o.quiet || o.format != "" {
			t.Rows = append(t.Rows, row)
			continue
		}
		if !seen[row["ID"]] {
			seen[row["ID"]] = true
			if _, err := fmt.Fprintln(env.Out, row["ID"]); err != nil {
				return err
			}
		}
	}
	if o.quiet && o.format == "" {
		return nil
	}
	return t.Write(env.Out, o.format)
}

func listRow(env *cli.Env, i *imagesv1.Image, noTrunc bool) map[string]string {
	repository, tag := familiar(i.GetMeta().GetName())
	id := i.GetConfigDescriptor().GetDigest()
	if !noTrunc {
		id = cli.Short(id)
	}
	row := map[string]string{
		"Repository": repository, "Tag": tag, "ID": id, "Digest": i.GetTarget().GetDigest(), "Size": cli.Size(i.GetBytes()),
		"CreatedSince": "", "CreatedAt": "", "Platform": i.GetPlatform(),
	}
	if c := i.GetConfig().GetCreatedAt(); c != nil && c.GetSeconds() > 0 {
		row["CreatedSince"] = env.Ago(c.AsTime())
		row["CreatedAt"] = c.AsTime().Local().Format("2006-01-02 15:04:05 -0700 MST")
	}
	return row
}

// familiar takes docker's defaults off a full reference and splits it.
func familiar(name string) (repository, tag string) {
	name = strings.TrimPrefix(name, "docker.io/")
	name = strings.TrimPrefix(name, "library/")
	repository, tag = name, "<none>"
	if at := strings.Index(repository, "@"); at >= 0 {
		repository = repository[:at]
	}
	if colon := strings.LastIndex(repository, ":"); colon > strings.LastIndex(repository, "/") {
		repository, tag = repository[:colon], repository[colon+1:]
	}
	if repository == "" {
		repository = "<none>"
	}
	return repository, tag
}

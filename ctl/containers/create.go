package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/gantryd/gantry/ctl/cli"
	"github.com/gantryd/gantry/ctl/images"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

func newCreateCommand(env *cli.Env) *cobra.Command {
	var f specFlags
	cmd := &cobra.Command{
		Use: "create [flags] IMAGE [COMMAND] [ARG...]", Short: "Make a container without starting it",
		Example: "  gantry create --name web -p 8080:80 nginx\n  gantry start web",
		Args:    cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request(cmd, args)
			if err != nil {
				return err
			}
			c, err := f.create(cmd.Context(), env, req)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(env.Out, c.GetMeta().GetId())
			return err
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// create makes the container, and pulls its image first where --pull says so.
func (f *specFlags) create(ctx context.Context, env *cli.Env, req *containersv1.CreateRequest) (*containersv1.Container, error) {
	if f.cidfile != "" {
		if _, err := os.Lstat(f.cidfile); !errors.Is(err, fs.ErrNotExist) {
			return nil, cli.Usagef("--cidfile %s: the file is there already (or cannot be looked at); remove it or name another", f.cidfile)
		}
	}
	pull := func() error {
		_, err := images.Pull(ctx, env, &imagesv1.PullRequest{
			Ref: req.GetSpec().GetImage(), Platform: f.platform, Snapshotter: f.snapshotter,
		}, f.quiet, env.Err)
		return err
	}
	switch f.pull {
	case "always":
		if err := pull(); err != nil {
			return nil, err
		}
	case "missing", "never", "":
	default:
		return nil, cli.Usagef("--pull %q: always, missing and never are known", f.pull)
	}
	if err := f.fits(ctx, env, req.GetSpec().GetImage(), pull); err != nil {
		return nil, err
	}
	resp, err := env.Containers().Create(ctx, req)
	if f.pull != "never" && cli.Code(err) == codes.NotFound && missing(ctx, env, req.GetSpec().GetImage()) {
		if !f.quiet {
			_, _ = fmt.Fprintf(env.Err, "image %q is not here yet; pulling it\n", req.GetSpec().GetImage())
		}
		if err := pull(); err != nil {
			return nil, err
		}
		resp, err = env.Containers().Create(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	warn(env, resp.GetWarnings())
	if f.cidfile != "" {
		if err := os.WriteFile(f.cidfile, []byte(resp.GetContainer().GetMeta().GetId()), 0o644); err != nil { //nolint:gosec // an id is no secret
			return nil, fmt.Errorf("write --cidfile: %w", err)
		}
	}
	return resp.GetContainer(), nil
}

// warn says what has no effect, or less than was asked for, as docker does.
func warn(env *cli.Env, warnings []string) {
	for _, w := range warnings {
		_, _ = fmt.Fprintln(env.Err, "WARNING: "+w)
	}
}

// fits makes sure that an image that is here is the one for --platform: an image of the same name for
// another one is replaced, or refused where nothing may be pulled.
func (f *specFlags) fits(ctx context.Context, env *cli.Env, ref string, pull func() error) error {
	if f.platform == "" {
		return nil
	}
	get := func() error {
		_, err := env.Images().Get(ctx, &imagesv1.GetRequest{Ref: ref, Platform: f.platform})
		return err
	}
	err := get()
	if cli.Code(err) != codes.NotFound || f.pull != "missing" && f.pull != "" {
		return err
	}
	if !f.quiet {
		_, _ = fmt.Fprintf(env.Err, "image %q is not here for %s yet; pulling it\n", ref, f.platform)
	}
	if err := pull(); err != nil {
		return err
	}
	return get()
}

// missing reports whether it was the image that was not found.
func missing(ctx context.Context, env *cli.Env, ref string) bool {
	_, err := env.Images().Get(ctx, &imagesv1.GetRequest{Ref: ref})
	return cli.Code(err) == codes.NotFound
}

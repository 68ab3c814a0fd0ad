"""One page that shows runs side by side: `runs` reads, `groups` sorts, `numbers` counts, `figures` draws."""

"""On-policy rounds: what a round needs, makes and measures. `raydpo.pipelines.online` puts it in order."""

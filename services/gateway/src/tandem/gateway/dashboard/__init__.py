"""GET /dashboard: what this gateway sees, live. Observers -> ring -> snapshot -> events; nothing goes back.

`recorder` hears the data path and `roster` the cluster; `workers`, `links`, `rooms` and `ring` make rows and points of
what is known, as pure functions; `board` puts them together once a second, while somebody looks; `feed` and
`endpoints` send that out. The page itself lies in `static`.
"""

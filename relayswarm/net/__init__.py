"""How processes of a swarm reach each other, and whom they believe: the one place for credentials.

What belongs here: addresses, channels and ports with or without TLS, the names in certificates, and
join tokens; for coordinator and peers alike. What is said over them is for others.
"""
